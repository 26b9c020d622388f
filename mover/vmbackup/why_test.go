package vmbackup

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/chain"
	"github.com/blockmover/blockmover/internal/kubevirt"
)

var noon = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)

func TestWhyFull(t *testing.T) {
	disk := func(volume, checkpoint string) Disk {
		return Disk{Disk: kubevirt.Disk{Volume: volume}, Image: Image{Checkpoint: checkpoint, Full: noon.Add(-time.Hour)}}
	}
	both := []Disk{disk("a", "c1"), disk("b", "c1")}
	restored := disk("b", "c1")
	restored.Image.Restored = "dd-1"
	c1 := kubevirt.Checkpoint{Name: "c1", Volumes: []string{"a", "b"}}
	for name, tc := range map[string]struct {
		disks      []Disk
		present    []string
		checkpoint kubevirt.Checkpoint
		reasons    []string
		detail     string
	}{
		"what changed will do":             {both, []string{"b", "a"}, c1, nil, ""},
		"a disk that is not wanted":        {both[:1], []string{"a", "b"}, c1, nil, ""},
		"no checkpoint":                    {both, []string{"a", "b"}, kubevirt.Checkpoint{}, []string{"NoParent"}, "the VM has no checkpoint"},
		"a disk more":                      {both, []string{"a", "b", "c"}, c1, []string{"DisksChanged"}, "the VM has the disks a, b, c, and checkpoint c1 has a, b"},
		"a disk less":                      {both[:1], []string{"a"}, c1, []string{"DisksChanged"}, ""},
		"another disk, and no image of it": {append(both[:1:1], disk("c", "")), []string{"a", "c"}, c1, []string{"DisksChanged", "NoParent"}, ""},
		"another checkpoint": {
			both,
			[]string{"a", "b"},
			kubevirt.Checkpoint{Name: "c2", Volumes: []string{"a", "b"}},
			[]string{"CheckpointUnknown", "CheckpointUnknown"},
			"the newest image of disk a shows checkpoint c1, and KubeVirt knows what changed since c2",
		},
		"one disk is behind":        {[]Disk{disk("a", "c1"), disk("b", "c0")}, []string{"a", "b"}, c1, []string{"CheckpointUnknown"}, "of disk b shows checkpoint c0"},
		"restored before the image": {[]Disk{both[0], restored}, []string{"a", "b"}, c1, nil, ""},
		"restored since":            {both, []string{"a", "b"}, c1, []string{"DiskRestored"}, "a restore has written disk b in place since"},
		"due": {
			[]Disk{{Disk: kubevirt.Disk{Volume: "a"}, Image: both[0].Image, FullEvery: time.Hour}, both[1]},
			[]string{"a", "b"},
			c1,
			[]string{"FullDue"},
			"the newest full image of disk a is 1h0m0s old, one is due every 1h0m0s",
		},
		"not due yet": {[]Disk{{Disk: kubevirt.Disk{Volume: "a"}, Image: both[0].Image, FullEvery: 2 * time.Hour}, both[1]}, []string{"a", "b"}, c1, nil, ""},
		"asked for":   {[]Disk{both[0], {Disk: kubevirt.Disk{Volume: "b"}, Forced: true}}, []string{"a", "b"}, kubevirt.Checkpoint{}, []string{"ForcedFull"}, "of disk b was asked for"},
	} {
		t.Run(name, func(t *testing.T) {
			var reasons []string
			var by map[string]string
			if strings.HasPrefix(name, "restored") {
				by = map[string]string{"b": "dd-1"}
			}
			got := whyFull(tc.disks, tc.present, tc.checkpoint, by, noon)
			for _, r := range got {
				reasons = append(reasons, string(r.Reason))
			}
			require.Equal(t, tc.reasons, reasons)
			if len(got) > 0 {
				require.Contains(t, got[0].Detail, tc.detail)
			}
		})
	}
}

func TestState(t *testing.T) {
	full := State{
		Attempt: 2, Decided: true, Since: "c1", Forced: []chain.Step{{Reason: "IncrementalStuck", Detail: "it hangs"}}, Begun: true, NoSpace: 1,
		Files: &Files{Backup: "b-2", Checkpoint: "b-2-2026", At: noon, Volume: "pv-1"}, Ready: true,
	}
	for _, want := range []State{{}, full} {
		got, err := Parse(want.String())
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	got, err := Parse("")
	require.NoError(t, err)
	require.Equal(t, State{}, got)
	for text, want := range map[string]string{"{": "unexpected end", `{"ready":true}`: "it is ready, and has no files"} {
		_, err := Parse(text)
		require.ErrorContains(t, err, want)
	}
}
