package kubevirt

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/e2e/kit"
)

// disks are the PVCs of the VM and their devices in the guest, in the order in which the writer
// writes to them.
var disks = []struct{ claim, device, restored string }{
	{"blk", "/dev/vda", "/dev/blk"},
	{"fs", "/dev/vdb", "/fs/disk.img"},
	{"disk-3-9", "/dev/vdc", "/dev/disk-3-9"},
}

const policy = `version: v1
volumePolicies:
- conditions: {csi: {}}
  action: {type: custom, parameters: {mover: blockmover-kubevirt}}
`

// scenario is the view that one test has of the cluster.
type scenario struct {
	*testing.T
	kit    *kit.Kit
	ctx    context.Context
	suffix string
}

func newScenario(t *testing.T) *scenario {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Minute)
	t.Cleanup(cancel)
	return &scenario{T: t, kit: newKit(t.Logf), ctx: ctx, suffix: strconv.FormatInt(time.Now().UnixNano()/1000%0xffffff, 36)}
}

func (s *scenario) kubectl(args ...string) string {
	s.Helper()
	out, err := s.kit.Kubectl(s.ctx, args...)
	require.NoError(s, err)
	return out
}

func (s *scenario) namespace(base string) string {
	name := base + "-" + s.suffix
	s.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
		defer cancel()
		require.NoError(s, s.kit.DeleteNamespace(ctx, name))
	})
	return name
}

// start makes the VM with its disks, and waits until it runs and its changes are tracked.
func (s *scenario) start() guest {
	s.Helper()
	namespace := s.namespace("vms")
	s.applyVM(namespace)
	s.kubectl("-n", namespace, "wait", "pod/make-disk", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=60s")
	s.kubectl("-n", namespace, "delete", "pod", "make-disk")
	s.kubectl("-n", namespace, "patch", "vm", "vm1", "--type=merge", "-p", `{"spec":{"runStrategy":"Always"}}`)
	return s.running(namespace)
}

func (s *scenario) applyVM(namespace string) {
	s.Helper()
	manifest, err := os.ReadFile(filepath.Join(os.Getenv("BLOCKMOVER_E2E"), "kubevirt", "vm.yaml"))
	require.NoError(s, err)
	require.NoError(s, s.kit.Apply(s.ctx, strings.NewReplacer("NAMESPACE", namespace, "CLASS", s.kit.StorageClass).Replace(string(manifest))))
}

// running waits until the VM runs, its guest agent answers, and its changes are tracked.
func (s *scenario) running(namespace string) guest {
	s.Helper()
	err := s.kit.Wait(s.ctx, "VM to run", 3*time.Minute, func(ctx context.Context) (bool, string, error) {
		status, err := s.kit.Kubectl(ctx, "-n", namespace, "get", "vm", "vm1", "-o",
			`jsonpath={.status.printableStatus} {.status.changedBlockTracking.state} {.status.conditions[?(@.type=="AgentConnected")].status}`)
		return status == "Running Enabled True", status, err
	})
	require.NoError(s, err)
	return guest{namespace, "vm1"}
}

func (s *scenario) in(g guest, command string) string {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, 2*time.Minute)
	defer cancel()
	out, err := g.run(ctx, command)
	require.NoError(s, err)
	return strings.TrimSpace(out)
}

// sums are the sums of the disks as the guest sees them, by PVC.
func (s *scenario) sums(g guest) map[string]string {
	s.Helper()
	sums := map[string]string{}
	for _, d := range disks {
		sum, _, _ := strings.Cut(s.in(g, "md5sum "+d.device), " ")
		sums[d.claim] = sum
	}
	return sums
}

// backUp makes a backup of the VM's namespace, and returns the results of its disks by PVC.
func (s *scenario) backUp(name, namespace string, args ...string) map[string]map[string]string {
	s.Helper()
	s.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
		defer cancel()
		if items, err := s.kit.List(ctx, "-n", s.kit.VeleroNamespace, "backups.velero.io", "--field-selector", "metadata.name="+name); err != nil || len(items) > 0 {
			require.NoError(s, err)
			require.NoError(s, s.kit.DeleteBackup(ctx, name))
		}
	})
	began := time.Now()
	require.NoError(s, s.kit.MustBackup(s.ctx, name, append([]string{"--include-namespaces", namespace, "--resource-policies-configmap", s.policy()}, args...)...))
	uploads, err := s.kit.DataUploads(s.ctx, name)
	require.NoError(s, err)
	require.GreaterOrEqual(s, len(uploads), len(disks), kit.Names(uploads))
	results := map[string]map[string]string{}
	for claim, u := range uploads {
		results[claim] = u.Status.DataMoverResult
		s.Logf("backup %s of %s after %.1f s: %v", name, claim, time.Since(began).Seconds(), u.Status.DataMoverResult)
	}
	require.NoError(s, s.kit.WaitNoLeftovers(s.ctx))
	return results
}

func (s *scenario) policy() string {
	name := "vm-policy-" + s.suffix
	_, err := s.kit.Run(s.ctx, fmt.Sprintf("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: %s, namespace: %s}\ndata:\n  policy.yaml: |\n    %s\n",
		name, s.kit.VeleroNamespace, strings.ReplaceAll(policy, "\n", "\n    ")), "kubectl", "apply", "-f", "-")
	require.NoError(s, err)
	return name
}

// restoreDisks restores only the disks into a namespace of their own, and starts a pod that has
// them.
func (s *scenario) restoreDisks(backup, from, base string) *kit.App {
	s.Helper()
	target := s.namespace(base)
	require.NoError(s, s.kit.MustRestore(s.ctx, base+"-"+s.suffix, backup, "--namespace-mappings", from+":"+target,
		"--include-resources", "persistentvolumeclaims,persistentvolumes"))
	require.NoError(s, s.kit.Apply(s.ctx, fmt.Sprintf(`apiVersion: apps/v1
kind: Deployment
metadata: {name: app, namespace: %s}
spec:
  replicas: 1
  selector: {matchLabels: {app: app}}
  template:
    metadata: {labels: {app: app}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: app
        image: %s
        imagePullPolicy: IfNotPresent
        command: [sh, -c, "sleep 1000000"]
        volumeMounts: [{name: fs, mountPath: /fs}]
        volumeDevices: [{name: blk, devicePath: /dev/blk}, {name: third, devicePath: /dev/disk-3-9}]
      volumes:
      - {name: blk, persistentVolumeClaim: {claimName: blk}}
      - {name: fs, persistentVolumeClaim: {claimName: fs}}
      - {name: third, persistentVolumeClaim: {claimName: disk-3-9}}
`, target, s.kit.ToolsImage)))
	app, err := s.kit.AppIn(s.ctx, target)
	require.NoError(s, err)
	return app
}

func (s *scenario) requireSums(app *kit.App, want map[string]string) {
	s.Helper()
	for _, d := range disks {
		out, err := app.Exec(s.ctx, "md5sum "+d.restored)
		require.NoError(s, err)
		require.Equal(s, want[d.claim], strings.Fields(out)[0], "disk %s", d.claim)
	}
}

// TestRunningVM backs up the disks of a running VM, in full and five times what changed, quiet and while
// the guest writes an ascending counter to one disk after the other. What is restored is what the
// guest saw.
func TestRunningVM(t *testing.T) {
	s := newScenario(t)
	g := s.start()
	for _, d := range disks {
		s.in(g, "dd if=/dev/urandom of="+d.device+" bs=1M count=6 seek=3 conv=fsync 2>/dev/null")
	}
	name := func(n int) string { return fmt.Sprintf("vm-%d-%s", n, s.suffix) }
	want := map[int]map[string]string{1: s.sums(g)}
	for claim, result := range s.backUp(name(1), g.namespace) {
		require.Equal(t, "Full NoParent", result["kind"]+" "+result["reason"], claim)
	}
	for n := 2; n <= 3; n++ {
		for _, d := range disks {
			s.in(g, fmt.Sprintf("dd if=/dev/urandom of=%s bs=64k count=3 seek=%d conv=fsync 2>/dev/null", d.device, 37*n))
		}
		want[n] = s.sums(g)
		for claim, result := range s.backUp(name(n), g.namespace) {
			require.Equal(t, "Incremental ", result["kind"]+" "+result["reason"], "%s: %s", claim, result["detail"])
			read, err := strconv.Atoi(result["bytesRead"])
			require.NoError(t, err)
			require.LessOrEqual(t, read, 4*64<<10, "of %s", claim)
		}
	}

	// The counter is at 1 MiB. Each write is on the disk before the next one begins.
	s.in(g, `(i=0; while [ ! -e /tmp/stop ]; do i=$((i+1)); for d in a b c; do printf %016d $i | dd of=/dev/vd$d bs=16 seek=65536 conv=notrunc,fsync 2>/dev/null; done; done) >/dev/null 2>&1 &`)
	for n := 4; n <= 6; n++ {
		for claim, result := range s.backUp(name(n), g.namespace) {
			require.Equal(t, "Incremental ", result["kind"]+" "+result["reason"], "%s: %s", claim, result["detail"])
		}
	}
	s.in(g, "touch /tmp/stop")

	for n := 1; n <= 3; n++ {
		s.requireSums(s.restoreDisks(name(n), g.namespace, fmt.Sprintf("quiet-%d", n)), want[n])
	}
	var last int
	for n := 4; n <= 6; n++ {
		counters := s.counters(s.restoreDisks(name(n), g.namespace, fmt.Sprintf("busy-%d", n)))
		t.Logf("backup %s shows the counters %v", name(n), counters)
		require.True(t, counters[0] >= counters[1] && counters[1] >= counters[2] && counters[0] <= counters[2]+1, "one instant: %v", counters)
		require.Greater(t, counters[0], last, "a later instant")
		last = counters[0]
	}

	// Any of them can go.
	for _, n := range []int{1, 4, 2} {
		require.NoError(t, s.kit.DeleteBackup(s.ctx, name(n)))
	}
	s.requireSums(s.restoreDisks(name(3), g.namespace, "after-deletion"), want[3])
	kopia, err := s.kit.StockKopia(s.ctx, g.namespace, t.TempDir())
	require.NoError(t, err)
	require.NoError(t, kopia.Verify(s.ctx))
}

// counters reads what the writer has written to each disk, in its order.
func (s *scenario) counters(app *kit.App) []int {
	s.Helper()
	var counters []int
	for _, d := range disks {
		out, err := app.Exec(s.ctx, "dd if="+d.restored+" bs=16 skip=65536 count=1 2>/dev/null")
		require.NoError(s, err)
		n, err := strconv.Atoi(strings.TrimSpace(out))
		require.NoError(s, err)
		counters = append(counters, n)
	}
	return counters
}

// TestRestoredVM restores a VM into another namespace. It starts after its last disk, and sees what
// the first one saw. Its first backup is full, the next one has what changed.
func TestRestoredVM(t *testing.T) {
	s := newScenario(t)
	g := s.start()
	for _, d := range disks {
		s.in(g, "dd if=/dev/urandom of="+d.device+" bs=64k count=20 seek=5 conv=fsync 2>/dev/null")
	}
	want := s.sums(g)
	backup := "whole-" + s.suffix
	s.backUp(backup, g.namespace)
	target := s.namespace("copy")
	err := s.kit.MustRestore(s.ctx, backup, backup, "--namespace-mappings", g.namespace+":"+target)
	if err != nil {
		log, _ := s.kit.Velero(s.ctx, "restore", "logs", backup)
		t.Log(log)
	}
	require.NoError(t, err)
	require.Equal(t, "Always", s.kubectl("-n", target, "get", "vm", "vm1", "-o", "jsonpath={.spec.runStrategy}{.metadata.annotations.blockmover\\.io/run-strategy}"))
	copied := s.running(target)
	require.Equal(t, want, s.sums(copied))
	require.NoError(t, s.kit.CheckStamps(s.ctx, target))

	for n, kind := range []string{"Full NoParent", "Incremental "} {
		s.in(copied, fmt.Sprintf("dd if=/dev/urandom of=/dev/vda bs=64k count=1 seek=%d conv=fsync 2>/dev/null", 100+n))
		for claim, result := range s.backUp(fmt.Sprintf("copied-%d-%s", n, s.suffix), target) {
			require.Equal(t, kind, result["kind"]+" "+result["reason"], claim)
		}
	}
}
