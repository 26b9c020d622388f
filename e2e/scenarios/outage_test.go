package scenarios

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/blockmover/blockmover/e2e/cluster"
	"github.com/blockmover/blockmover/e2e/kit"
)

// envOutage is how long TestObjectStoreAway keeps the object store away at least, and
// envOutageSize the size of the volume.
const (
	envOutage     = "BLOCKMOVER_OUTAGE"
	envOutageSize = "BLOCKMOVER_OUTAGE_SIZE"
)

const (
	// outageSeconds is how long the data moves without an outage.
	outageSeconds = 20
	// outageMore is how much longer the object store stays away at most, for the attempt to end. A
	// restore first writes what it has fetched ahead.
	outageMore = 2 * time.Minute
)

// TestObjectStoreAway kills the S3 server in the middle of a backup and of a restore, until the
// attempt has ended. Both complete, and nobody has to do anything. They read no more again than
// what a checkpoint covers.
func TestObjectStoreAway(t *testing.T) {
	s := newScenario(t)
	s.harness()
	outage, size := 75*time.Second, int64(160<<20)
	if text := os.Getenv(envOutage); text != "" {
		var err error
		outage, err = time.ParseDuration(text)
		require.NoError(t, err)
	}
	if text := os.Getenv(envOutageSize); text != "" {
		quantity, err := resource.ParseQuantity(text)
		require.NoError(t, err)
		size = quantity.Value()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute+4*(outage+outageMore))
	defer cancel()
	s.ctx = ctx
	namespace := s.namespace("away")
	disk := strings.ReplaceAll(disksManifest(s.kit, namespace, "disk", []string{"disk"}), "storage: 16Mi", fmt.Sprintf("storage: %d", size))
	require.NoError(t, s.kit.Apply(s.ctx, disk))
	app, err := s.kit.AppIn(s.ctx, namespace)
	require.NoError(t, err)
	_, err = app.Exec(s.ctx, fmt.Sprintf("dd if=/dev/urandom of=/dev/disk bs=1M count=%d conv=fsync", size>>20))
	require.NoError(t, err)
	want := s.diskSums(app, []string{"disk"})
	s.configure(fmt.Sprintf("rateLimit: %d", size/outageSeconds))

	name := s.name("away")
	s.deleteBackupInTheEnd(name)
	_, err = s.kit.Velero(s.ctx, append([]string{"backup", "create", name}, append(perVolume.args(s), "--include-namespaces", namespace)...)...)
	require.NoError(t, err)
	uploads := []string{"datauploads.velero.io", "-l", kit.LabelBackup + "=" + name}
	s.outageDuring(uploads, size, outage)
	require.NoError(t, s.kit.CompleteBackup(s.ctx, name))
	s.checkReadAgain(uploads, size)

	s.storeAvailable(s.ctx)
	target := s.namespace("away-copy")
	restore := s.name("away-restore")
	_, err = s.kit.Velero(s.ctx, "restore", "create", restore, "--from-backup", name, "--namespace-mappings", namespace+":"+target)
	require.NoError(t, err)
	downloads := []string{"datadownloads.velero.io", "-l", kit.LabelRestore + "=" + restore}
	s.outageDuring(downloads, size, outage)
	require.NoError(t, s.kit.Wait(s.ctx, "restore to complete", 5*time.Minute, func(ctx context.Context) (bool, string, error) {
		var o kit.Object
		err := s.kit.Get(ctx, &o, "-n", s.kit.VeleroNamespace, "restores.velero.io", restore)
		return o.Status.Phase == "Completed", o.Status.Phase, err
	}))
	s.attemptsOf(downloads)
	restored, err := s.kit.AppIn(s.ctx, target)
	require.NoError(t, err)
	require.Equal(t, want, s.diskSums(restored, []string{"disk"}))
	s.checkNothingLeft()
}

// checkReadAgain checks how much of a volume an upload has read more than once.
func (s *scenario) checkReadAgain(upload []string, size int64) {
	s.Helper()
	again := s.attemptsOf(upload) - size
	s.Logf("%d of %d MiB were read again", again>>20, size>>20)
	require.LessOrEqual(s, again, int64(checkpointInterval))
}

// attemptsOf checks that an operation took more than one attempt, and returns what an upload has
// read in all. A restore that goes on compares the device with the image.
func (s *scenario) attemptsOf(operation []string) (read int64) {
	s.Helper()
	last, err := s.attempt(s.ctx, operation)
	require.NoError(s, err)
	s.Logf("%s took %d attempts", operation, last.Number)
	require.Greater(s, last.Number, 1, "the outage ended an attempt")
	return last.BytesRead + last.ReadBefore
}

// lastAttempt is what an operation records of its attempts.
type lastAttempt struct {
	Number                int
	BytesRead, ReadBefore int64
}

// attempt returns the last attempt of an operation.
func (s *scenario) attempt(ctx context.Context, operation []string) (last lastAttempt, err error) {
	found, err := s.kit.List(ctx, append([]string{"-n", s.kit.VeleroNamespace}, operation...)...)
	if err != nil {
		return last, err
	}
	if len(found) != 1 {
		return last, fmt.Errorf("found %d operations, want 1", len(found))
	}
	return last, json.Unmarshal([]byte(found[0].Metadata.Annotations["blockmover.io/attempt"]), &last)
}

// checkpointInterval is what the data path records at the latest.
const checkpointInterval = 4 << 30

// outageDuring kills the S3 server as soon as an operation moves data, and starts it again when
// the outage is over and the attempt has ended.
func (s *scenario) outageDuring(operation []string, size int64, outage time.Duration) {
	s.Helper()
	get := append([]string{"-n", s.kit.VeleroNamespace, "get"}, operation...)
	s.wait("bytes to be moved", func(ctx context.Context) (bool, string, error) {
		out, err := s.kit.Kubectl(ctx, append(get, "-o", "jsonpath={.items[*].status.progress.bytesDone}")...)
		for _, done := range strings.Fields(out) {
			if n, _ := strconv.ParseInt(done, 10, 64); n > size/10 {
				return true, out, nil
			}
		}
		return false, out, err
	})
	s.storeAvailableInTheEnd()
	restart := s.kill("versitygw")
	time.Sleep(outage)
	require.NoError(s, s.kit.Wait(s.ctx, "the attempt to end", outageMore, func(ctx context.Context) (bool, string, error) {
		last, err := s.attempt(ctx, operation)
		return last.Number > 1, fmt.Sprintf("attempt %d", last.Number), err
	}))
	out, err := s.kit.Kubectl(s.ctx, append(get, "-o", `jsonpath={range .items[*]}{.status.phase} {.status.progress.bytesDone}/{.status.progress.totalBytes} {.metadata.annotations.blockmover\.io/attempt}{"\n"}{end}`)...)
	require.NoError(s, err)
	s.Logf("after %s and more without the object store:\n%s", outage, out)
	restart()
}

// storeAvailable waits until Velero knows that the object store is there. Velero validates a location once a minute. It backs up to none that
// was away then, and restores from none.
func (s *scenario) storeAvailable(ctx context.Context) {
	s.Helper()
	_, err := s.kit.Kubectl(ctx, "-n", s.kit.VeleroNamespace, "wait", "backupstoragelocations.velero.io/default",
		"--for=jsonpath={.status.phase}=Available", "--timeout=150s")
	require.NoError(s, err)
}

// storeAvailableInTheEnd is for who takes the object store away afterwards: the next test shall find it.
func (s *scenario) storeAvailableInTheEnd() {
	s.Cleanup(func() {
		ctx, cancel := cleanupContext()
		defer cancel()
		s.storeAvailable(ctx)
	})
}

// kill kills a component of the harness's cluster, and returns what lets it start again.
func (s *scenario) kill(component string) (restart func()) {
	s.Helper()
	s.harness()
	s.component(component)
	state := os.Getenv("BLOCKMOVER_CLUSTER_STATE")
	restart = func() {
		if err := cluster.Release(state, component); err != nil {
			s.Errorf("let %s start again: %v", component, err)
		}
	}
	s.Cleanup(restart)
	require.NoError(s, cluster.Hold(state, component))
	return restart
}

// configure adds lines to the configuration of the mover until the end of the test. The last call
// counts.
func (s *scenario) configure(lines string) {
	s.Helper()
	var config struct{ Data map[string]string }
	text, err := s.kit.Kubectl(s.ctx, "-n", s.kit.VeleroNamespace, "get", "configmap", "blockmover-config", "-o", "json")
	require.NoError(s, err)
	require.NoError(s, json.Unmarshal([]byte(text), &config))
	const mark = "\n# of a scenario\n"
	before, _, found := strings.Cut(config.Data["config.yaml"], mark)
	if !found {
		s.Cleanup(func() {
			ctx, cancel := cleanupContext()
			defer cancel()
			s.setConfiguration(ctx, before)
		})
	}
	s.setConfiguration(s.ctx, before+mark+lines+"\n")
}

// setConfiguration replaces the configuration of the mover, and the manager, which follows it too late
// for a test.
func (s *scenario) setConfiguration(ctx context.Context, document string) {
	s.Helper()
	patch, err := json.Marshal(map[string]any{"data": map[string]string{"config.yaml": document}})
	require.NoError(s, err)
	_, err = s.kit.Kubectl(ctx, "-n", s.kit.VeleroNamespace, "patch", "configmap", "blockmover-config", "--type=merge", "-p", string(patch))
	require.NoError(s, err)
	require.NoError(s, s.kit.RestartMover(ctx))
}
