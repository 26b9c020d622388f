package scenarios

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/e2e/kit"
)

// TestInPlaceNumbers measures a restore in place of a volume of which 1 % has changed, beside a
// restore to a new volume. It takes minutes and gigabytes, so it runs only if
// BLOCKMOVER_IN_PLACE_GIB has the size of the volume in GiB.
func TestInPlaceNumbers(t *testing.T) {
	var gib int64
	if _, err := fmt.Sscan(os.Getenv("BLOCKMOVER_IN_PLACE_GIB"), &gib); err != nil {
		t.Skip("BLOCKMOVER_IN_PLACE_GIB is not set")
	}
	s := newScenario(t)
	s.overLink()
	namespace := s.namespace("numbers")
	mebis := gib << 10
	require.NoError(t, s.kit.Apply(s.ctx, fmt.Sprintf("apiVersion: v1\nkind: Namespace\nmetadata: {name: %s}\n---\n%s\n---\n%s\n", namespace,
		kit.PVC(namespace, kit.DiskPVC, s.kit.StorageClass, "Block", gib<<30),
		s.kit.Deployment(namespace, kit.Mount{Claim: kit.DiskPVC, Path: "/dev/disk", Block: true}))))
	app, err := s.kit.AppIn(s.ctx, namespace)
	require.NoError(t, err)
	sum := func(app *kit.App) string {
		out, err := app.Exec(s.ctx, "sha256sum < /dev/disk")
		require.NoError(t, err)
		return strings.Fields(out)[0]
	}
	_, err = app.Exec(s.ctx, fmt.Sprintf("dd if=/dev/urandom of=/dev/disk bs=1M count=%d conv=notrunc 2>/dev/null; sync", mebis))
	require.NoError(t, err)
	want := sum(app)
	backup := s.backup("numbers", append(perVolume.args(s), "--include-namespaces", namespace)...)

	target := s.namespace("numbers-copy")
	name := s.name("full")
	const toNew = "a new volume"
	s.measure(toNew, func() {
		require.NoError(t, s.kit.MustRestore(s.ctx, name, backup, "--namespace-mappings", namespace+":"+target))
	})
	full := s.report(name, toNew, 0)
	restored, err := s.kit.AppIn(s.ctx, target)
	require.NoError(t, err)
	require.Equal(t, want, sum(restored))

	// 1 % in places of 1 MiB.
	places := mebis / 100
	change := fmt.Sprintf("i=0; while [ $i -lt %d ]; do dd if=/dev/urandom of=/dev/disk bs=1M seek=$((i*100+7)) count=1 conv=notrunc 2>/dev/null; i=$((i+1)); done; sync", places)
	for _, how := range []string{"in place, by changed blocks", "in place, by comparing"} {
		_, err := app.Exec(s.ctx, change)
		require.NoError(t, err)
		require.NotEqual(t, want, sum(app))
		require.NoError(t, app.Stop(s.ctx))
		byBlocks := strings.Contains(how, "blocks")
		if !byBlocks {
			s.hideMetadataService(s.driverOf(namespace))
		}
		name := s.name("r" + fmt.Sprint(byBlocks))
		s.measure(how, func() { require.NoError(t, s.kit.MustRestore(s.ctx, name, backup, inPlaceArgs("true", "")...)) })
		took := s.report(name, how, places<<20)
		s.Logf("NUMBERS %s: %.2f of the restore to a new volume", how, took.Seconds()/full.Seconds())
		require.NoError(t, app.Start(s.ctx))
		require.Equal(t, want, sum(app))
	}
	s.checkNothingLeft()
}

// report logs what a restore of one disk took, and returns the time from the creation of its
// DataDownload to its end.
func (s *scenario) report(restore, how string, changed int64) time.Duration {
	s.Helper()
	download, err := s.kit.DataDownloads(s.ctx, restore)
	require.NoError(s, err)
	times, err := s.kit.Kubectl(s.ctx, "-n", s.kit.VeleroNamespace, "get", "datadownload", download[kit.DiskPVC].Metadata.Name,
		"-o", "jsonpath={.metadata.creationTimestamp} {.status.completionTimestamp}")
	require.NoError(s, err)
	var at [2]time.Time
	for i, text := range strings.Fields(times) {
		at[i], err = time.Parse(time.RFC3339, text)
		require.NoError(s, err)
	}
	took := at[1].Sub(at[0])
	s.Logf("NUMBERS %s: operation %s: %s", how, took, download[kit.DiskPVC].Status.Message)
	if changed > 0 {
		done := s.doneInPlace(download[kit.DiskPVC])
		s.Logf("NUMBERS %s: written %.3f of the change, read %.3f of the volume", how, float64(done.written+done.zeroed)/float64(changed), float64(done.read)/float64(done.size))
		require.LessOrEqual(s, done.written+done.zeroed, changed*12/10)
	}
	return took
}
