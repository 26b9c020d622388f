package scenarios

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/blockmover/blockmover/e2e/kit"
)

// TestVolumesNumbers measures what volumes cost besides their data: a full backup, an incremental one and
// a restore of several, and the steps of their operations as the manager logs them. BLOCKMOVER_VOLUMES has
// the sets, such as "2x256Mi 40x4Mi". Without it, the test does not run.
func TestVolumesNumbers(t *testing.T) {
	sets := os.Getenv("BLOCKMOVER_VOLUMES")
	if sets == "" {
		t.Skip("BLOCKMOVER_VOLUMES is not set")
	}
	s := newScenario(t)
	s.overLink()
	for i, set := range strings.Fields(sets) {
		count, size, ok := strings.Cut(set, "x")
		require.True(t, ok, set)
		var n int
		_, err := fmt.Sscan(count, &n)
		require.NoError(t, err)
		bytes, err := resource.ParseQuantity(size)
		require.NoError(t, err)
		s.measureVolumes(fmt.Sprint("v", i), set, n, bytes.Value())
	}
	s.checkNothingLeft()
}

func (s *scenario) measureVolumes(base, set string, n int, size int64) {
	s.Helper()
	namespace := s.namespace(base)
	manifests := []string{fmt.Sprintf("apiVersion: v1\nkind: Namespace\nmetadata: {name: %s}", namespace)}
	var mounts []kit.Mount
	for i := range n {
		name := fmt.Sprint("disk-", i)
		manifests = append(manifests, kit.PVC(namespace, name, s.kit.StorageClass, "Block", size))
		mounts = append(mounts, kit.Mount{Claim: name, Path: "/dev/" + name, Block: true})
	}
	manifests = append(manifests, s.kit.Deployment(namespace, mounts...))
	require.NoError(s, s.kit.Apply(s.ctx, strings.Join(manifests, "\n---\n")))
	app, err := s.kit.AppIn(s.ctx, namespace)
	require.NoError(s, err)
	write := func(place, bytes int64) {
		_, err := app.Exec(s.ctx, fmt.Sprintf(
			"for d in /dev/disk-*; do head -c %d /dev/urandom | dd of=$d bs=4k seek=%d conv=notrunc iflag=fullblock 2>/dev/null; done; sync", bytes, place/4096))
		require.NoError(s, err)
	}
	sums := func(app *kit.App) string {
		out, err := app.Exec(s.ctx, "for d in /dev/disk-*; do sha256sum $d; done")
		require.NoError(s, err)
		return out
	}
	write(0, size)
	args := append(perVolume.args(s), "--include-namespaces", namespace)
	full := s.name(base + "-full")
	s.deleteBackupInTheEnd(full)
	s.measure(set+" full", func() { require.NoError(s, s.kit.MustBackup(s.ctx, full, args...)) })
	write(size/2, max(size/100, 4096)/4096*4096)
	want := sums(app)
	increment := s.name(base + "-increment")
	s.deleteBackupInTheEnd(increment)
	s.measure(set+" incremental", func() { require.NoError(s, s.kit.MustBackup(s.ctx, increment, args...)) })
	for name, upload := range s.nUploads(increment, n) {
		require.Equal(s, "Incremental", upload.Status.DataMoverResult["kind"], name)
	}
	target := s.namespace(base + "-copy")
	s.measure(set+" restore", func() {
		require.NoError(s, s.kit.MustRestore(s.ctx, s.name(base+"-r"), increment, "--namespace-mappings", namespace+":"+target))
	})
	restored, err := s.kit.AppIn(s.ctx, target)
	require.NoError(s, err)
	require.Equal(s, want, sums(restored))
}

// measure logs how long something takes, and the mean and the longest time of each step that the manager
// logs meanwhile.
func (s *scenario) measure(what string, do func()) {
	s.Helper()
	start := time.Now()
	do()
	took := time.Since(start)
	logs, err := s.kit.Kubectl(s.ctx, "-n", s.kit.VeleroNamespace, "logs", "deployment/blockmover", "--since-time", start.UTC().Format(time.RFC3339))
	require.NoError(s, err)
	steps := map[string][]time.Duration{}
	for line := range strings.Lines(logs) {
		var entry map[string]any
		if json.Unmarshal([]byte(line), &entry) != nil || entry["msg"] != "steps" {
			continue
		}
		for key, value := range entry {
			if text, ok := value.(string); ok {
				if d, err := time.ParseDuration(text); err == nil {
					steps[key] = append(steps[key], d)
				}
			}
		}
	}
	var line strings.Builder
	for _, name := range slices.Sorted(maps.Keys(steps)) {
		all := steps[name]
		var sum time.Duration
		for _, d := range all {
			sum += d
		}
		fmt.Fprintf(&line, " %s %.1f (%.1f)", name, (sum / time.Duration(len(all))).Seconds(), slices.Max(all).Seconds())
	}
	s.Logf("NUMBERS %s: %.1f s;%s", what, took.Seconds(), line.String())
}
