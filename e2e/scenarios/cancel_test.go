package scenarios

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/e2e/cluster"
	"github.com/blockmover/blockmover/e2e/kit"
)

// cancelDisk is the size of the disks that TestCancelAtOnce moves, with cancelRate bytes a second: for as long as a
// case may take.
const (
	cancelDisk = 64 << 20
	cancelRate = cancelDisk / 64
)

// cancellation is a moment at which an operation is canceled.
type cancellation struct {
	name string
	// config of the mover, and options of the driver.
	config, options string
	// phase is that of the operation, "" is any, and when what else is true of it.
	phase string
	when  func(o kit.Object) bool
	// trouble is what happens to the operation then, before it is canceled. It returns what ends it.
	trouble func(s *scenario, o kit.Object) (end func())
}

const (
	slowly        = "rateLimit: 1Mi\n"
	oneByOne      = slowly + "loadConcurrency: {globalConfig: 1}\n"
	unschedulable = "podResources: {cpuRequest: \"1000\"}\n"
	unstartable   = "env: [{name: MISSING, valueFrom: {secretKeyRef: {name: missing, key: missing}}}]\n"
)

func queued(o kit.Object) bool { return strings.Contains(o.Status.Message, "queued") }
func moving(o kit.Object) bool { return o.Status.Progress.BytesDone > cancelDisk/16 }

// cancellations are the phases of an operation, and in the longest of them what it may wait for.
var cancellations = []cancellation{
	{name: "queued", config: oneByOne, phase: "New", when: queued},
	{name: "pod without a node", config: unschedulable, phase: "Accepted"},
	{name: "pod that does not start", config: unstartable, phase: "Prepared"},
	{name: "opens the repository, and the object store hangs", config: slowly, trouble: hangAtStart},
	{name: "moves data", config: slowly, phase: "InProgress", when: moving},
	{name: "moves data without a limit", phase: "InProgress"},
	{name: "moves data, and the object store hangs", config: slowly, phase: "InProgress", when: moving, trouble: hang},
	{name: "moves data, and the object store refuses", config: slowly, phase: "InProgress", when: moving, trouble: refuse},
	{name: "its pod was lost", config: slowly, phase: "InProgress", when: moving, trouble: losePod},
}

// TestCancelAtOnce cancels backups and restores with `kubectl blockmover cancel` in every phase, and whatever they
// wait for. It prints how long each took until nothing of it was left.
func TestCancelAtOnce(t *testing.T) {
	s := newScenario(t)
	s.harness()
	s.storeAvailableInTheEnd()
	driver := s.driver()
	velero := s.kit.VeleroNamespace
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Minute)
	t.Cleanup(cancel)
	s.ctx = ctx
	config, err := s.kit.Kubectl(s.ctx, "-n", velero, "get", "configmap", "blockmover-config", "-o", "jsonpath={.data.config\\.yaml}")
	require.NoError(t, err)
	s.Cleanup(func() {
		ctx, cancel := cleanupContext()
		defer cancel()
		s.setConfiguration(ctx, config)
	})
	namespace := s.namespace("cancel-at-once")
	disks := []string{"a", "b"}
	require.NoError(t, s.kit.Apply(s.ctx, strings.ReplaceAll(disksManifest(s.kit, namespace, "disk", disks), "storage: 16Mi", fmt.Sprintf("storage: %d", cancelDisk))))
	app, err := s.kit.AppIn(s.ctx, namespace)
	require.NoError(t, err)
	fill := func() {
		for _, disk := range disks {
			_, err := app.Exec(s.ctx, fmt.Sprintf("dd if=/dev/urandom of=/dev/%s bs=1M count=%d conv=fsync", disk, cancelDisk>>20))
			require.NoError(t, err)
		}
	}
	fill()
	policy := perVolume.args(s)
	whole := s.backup("cancel-whole", append(policy, "--include-namespaces", namespace)...)

	var table strings.Builder
	run := func(c cancellation, kind, name string, start ...string) {
		s.setConfiguration(s.ctx, c.config)
		if c.options != "" {
			driver.options(c.options)
			defer driver.options(`{"requireBaseSnapshotForDelta": false}`)
		}
		took := s.cancelIn(c, kind, name, start)
		_, _ = fmt.Fprintf(&table, "%-50s %-13s %5.1f s\n", c.name, kind, took.Seconds())
	}
	late := cancellation{name: "VolumeSnapshot that is not ready", config: slowly, options: `{"snapshotDelay": "2m"}`, phase: "New"}
	for n, c := range append([]cancellation{late}, cancellations...) {
		fill() // what is in the repository already would not be uploaded
		name := s.name(fmt.Sprintf("cancel-%d", n))
		s.deleteBackupInTheEnd(name)
		run(c, "DataUpload", name, append([]string{"backup", "create", name, "--include-namespaces", namespace}, policy...)...)
	}
	for n, c := range cancellations {
		name := s.name(fmt.Sprintf("cancel-restore-%d", n))
		run(c, "DataDownload", name, "restore", "create", name, "--from-backup", whole, "--namespace-mappings", namespace+":"+s.namespace(fmt.Sprintf("cancel-to-%d", n)))
	}
	t.Logf("from the command to the end of each:\n%s", table.String())
}

// cancelIn starts a backup or a restore, cancels one of its operations, and returns how long that took. Nothing is left.
func (s *scenario) cancelIn(c cancellation, kind, name string, start []string) time.Duration {
	s.Helper()
	velero := []string{"-n", s.kit.VeleroNamespace}
	s.storeAvailable(s.ctx) // the case before may have taken it away
	_, err := s.kit.Velero(s.ctx, start...)
	require.NoError(s, err)
	operation := s.waitOperation(c, kind, name)
	end := func() {}
	if c.trouble != nil {
		end = c.trouble(s, operation)
	}
	resource := strings.ToLower(kind) + "s.velero.io/" + operation.Metadata.Name

	began := time.Now()
	_, err = s.kit.Kubectl(s.ctx, append([]string{"blockmover", "cancel", operation.Metadata.Name}, velero...)...)
	require.NoError(s, err)
	_, err = s.kit.Kubectl(s.ctx, append(velero, "wait", resource, "--for=jsonpath={.status.phase}=Canceled", "--timeout=60s")...)
	took := time.Since(began)
	require.NoError(s, err, "%s: %s", c.name, resource)
	s.Logf("%s: %s in %s was canceled within %.1f s", c.name, kind, c.phase, took.Seconds())
	for _, kinds := range []string{"pods", "persistentvolumeclaims", "volumesnapshots", "volumesnapshotcontents", "persistentvolumes"} {
		left, err := s.kit.List(s.ctx, append(velero, kinds, "-l", "blockmover.io/operation="+operation.Metadata.UID)...)
		require.NoError(s, err)
		require.Empty(s, left, "%s: what is left of a canceled operation", c.name)
	}
	end()

	// The other volume may have ended in the meantime.
	_, err = s.kit.Kubectl(s.ctx, append([]string{"blockmover", "cancel", name}, velero...)...)
	if err != nil {
		require.ErrorContains(s, err, "runs or waits")
	}
	// A restore stays for minutes after that: Velero waits for PVCs that get no volume any more.
	require.NoError(s, s.kit.Wait(s.ctx, name+" to end", 5*time.Minute, func(ctx context.Context) (bool, string, error) {
		var o kit.Object
		err := s.kit.Get(ctx, &o, append(velero, start[0]+"s.velero.io", name)...)
		return o.Status.Phase == "PartiallyFailed" || strings.HasPrefix(o.Status.Phase, "Finalizing"), o.Status.Phase, err
	}))
	s.checkNothingLeft()
	return took
}

// waitOperation waits until an operation of a backup or a restore is where it shall be canceled.
func (s *scenario) waitOperation(c cancellation, kind, name string) kit.Object {
	s.Helper()
	list, owner := s.kit.DataUploads, "backups.velero.io"
	if kind == "DataDownload" {
		list, owner = s.kit.DataDownloads, "restores.velero.io"
	}
	var found kit.Object
	s.wait(kind+" in "+c.phase+" that "+c.name, func(ctx context.Context) (bool, string, error) {
		operations, err := list(ctx, name)
		seen := ""
		for _, o := range operations {
			phase := cmp.Or(o.Status.Phase, "New")
			if (c.phase == "" || phase == c.phase) && (c.when == nil || c.when(o)) {
				found = o
				return true, "", nil
			}
			seen += fmt.Sprintf("%s %s %s, ", o.Metadata.Name, o.Status.Phase, o.Status.Message)
		}
		if len(operations) == 0 && err == nil {
			seen, err = s.kit.Kubectl(ctx, "-n", s.kit.VeleroNamespace, "get", owner, name, "-o", "jsonpath={.status.phase} {.status.validationErrors}")
		}
		return false, seen, err
	})
	return found
}

// hangTime is how long trouble lasts before an operation is canceled: buffers are full, and requests are under way.
const hangTime = 5 * time.Second

// hang stops the S3 server. It takes connections, and does not answer.
func hang(s *scenario, _ kit.Object) func() {
	s.Helper()
	pid := s.component("versitygw")
	end := func() { _ = syscall.Kill(pid, syscall.SIGCONT) }
	s.Cleanup(end)
	require.NoError(s, syscall.Kill(pid, syscall.SIGSTOP))
	time.Sleep(hangTime)
	return end
}

// hangAtStart is hang before the mover pod runs.
func hangAtStart(s *scenario, o kit.Object) func() {
	s.Helper()
	end := hang(s, o)
	s.wait("the mover pod to run", func(ctx context.Context) (bool, string, error) {
		var now kit.Object
		err := s.kit.Get(ctx, &now, "-n", s.kit.VeleroNamespace, strings.ToLower(o.Kind)+"s.velero.io", o.Metadata.Name)
		return now.Status.Phase == "InProgress", now.Status.Phase, err
	})
	time.Sleep(hangTime)
	return end
}

// refuse kills the S3 server. It takes no connections.
func refuse(s *scenario, _ kit.Object) func() {
	s.Helper()
	end := s.kill("versitygw")
	time.Sleep(hangTime)
	return end
}

// losePod kills the mover pod of an operation, and waits until the manager knows.
func losePod(s *scenario, o kit.Object) func() {
	s.Helper()
	velero := []string{"-n", s.kit.VeleroNamespace}
	_, err := s.kit.Kubectl(s.ctx, append(velero, "delete", "pods", "--force", "--grace-period=0", "-l", "blockmover.io/operation="+o.Metadata.UID)...)
	require.NoError(s, err)
	s.wait("another attempt", func(ctx context.Context) (bool, string, error) {
		var now kit.Object
		err := s.kit.Get(ctx, &now, append(velero, strings.ToLower(o.Kind)+"s.velero.io", o.Metadata.Name)...)
		attempt := now.Metadata.Annotations["blockmover.io/attempt"]
		return strings.Contains(attempt, `"number":2`), attempt, err
	})
	return func() {}
}

// component returns the process of a component of the harness's cluster, which has to run.
func (s *scenario) component(name string) int {
	s.Helper()
	pid, err := cluster.PID(os.Getenv("BLOCKMOVER_CLUSTER_STATE"), name)
	require.NoError(s, err)
	require.NotZero(s, pid, "%s does not run", name)
	return pid
}
