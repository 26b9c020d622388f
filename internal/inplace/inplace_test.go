package inplace_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/inplace"
)

func TestParseMode(t *testing.T) {
	for value, want := range map[string]inplace.Mode{
		"": inplace.Off, "false": inplace.Off, "true": inplace.SameVolume, "any-volume": inplace.AnyVolume,
	} {
		mode, err := inplace.ParseMode(value)
		require.NoError(t, err)
		require.Equal(t, want, mode)
	}
	for _, value := range []string{"True", "yes", " ", "any"} {
		mode, err := inplace.ParseMode(value)
		require.ErrorContains(t, err, `annotation blockmover.io/in-place of the Restore is "`+value+`", want true, any-volume or false`)
		require.Equal(t, inplace.Off, mode)
	}
}

func TestCheck(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(v *inplace.Volume, w *inplace.Wanted)
		want   string
		inUse  bool
	}{
		"fits":           {change: func(*inplace.Volume, *inplace.Wanted) {}},
		"larger":         {change: func(v *inplace.Volume, _ *inplace.Wanted) { v.Capacity = 11 }},
		"nothing known":  {change: func(_ *inplace.Volume, w *inplace.Wanted) { *w = inplace.Wanted{Mode: inplace.SameVolume} }},
		"attached":       {change: func(v *inplace.Volume, _ *inplace.Wanted) { v.Nodes = []string{"node-1"} }},
		"another PVC":    {change: func(v *inplace.Volume, _ *inplace.Wanted) { v.UID = "other" }, want: "was deleted and created again"},
		"being deleted":  {change: func(v *inplace.Volume, _ *inplace.Wanted) { v.Deleting = true }, want: "is being deleted"},
		"not bound":      {change: func(v *inplace.Volume, _ *inplace.Wanted) { v.Bound = false }, want: "PVC app/data is not bound to a volume"},
		"not of CSI":     {change: func(v *inplace.Volume, _ *inplace.Wanted) { v.Driver, v.Handle = "", "" }, want: "pv-1 of PVC app/data is not a CSI volume"},
		"in other hands": {change: func(v *inplace.Volume, _ *inplace.Wanted) { v.Operation = "DataDownload/velero/x" }, want: "still belongs to DataDownload/velero/x"},
		"too small":      {change: func(v *inplace.Volume, _ *inplace.Wanted) { v.Capacity = 9 }, want: "has 9 bytes and the image 10: expand the PVC first"},
		"another volume": {
			change: func(_ *inplace.Volume, w *inplace.Wanted) { w.Handle = "volume-2" },
			want:   `has volume "volume-1", and the image is of volume "volume-2": to overwrite another volume than the one that was backed up, set the annotation blockmover.io/in-place of the Restore to any-volume`,
		},
		"the same disk of a VM": {change: func(v *inplace.Volume, w *inplace.Wanted) {
			v.UID, w.UID, w.Handle = "1234-5678", "1234-5678", "9abc-def0/1234-5678"
		}},
		"the disk of a VM, and the PVC is another one": {
			change: func(_ *inplace.Volume, w *inplace.Wanted) { w.Handle = "9abc-def0/1234-5678" },
			want:   `has volume "volume-1", and the image is of volume "9abc-def0/1234-5678"`,
		},
		"another volume, as asked for": {change: func(_ *inplace.Volume, w *inplace.Wanted) { w.Handle, w.Mode = "volume-2", inplace.AnyVolume }},
		"in use": {
			change: func(v *inplace.Volume, _ *inplace.Wanted) { v.Pods = []string{"app-0", "app-1"} },
			want:   "pod app-0, app-1 uses PVC app/data: scale the application down", inUse: true,
		},
		"in use, of any volume": {
			change: func(v *inplace.Volume, w *inplace.Wanted) { v.Pods, w.Mode = []string{"app-0"}, inplace.AnyVolume },
			want:   "pod app-0 uses PVC app/data", inUse: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			v := inplace.Volume{Claim: "app/data", UID: "uid", Name: "pv-1", Bound: true, Driver: "driver", Handle: "volume-1", Capacity: 10}
			w := inplace.Wanted{Mode: inplace.SameVolume, UID: "uid", Size: 10, Handle: "volume-1"}
			tc.change(&v, &w)
			err := inplace.Check(v, w)
			if tc.want == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, tc.want)
			if tc.inUse {
				require.ErrorIs(t, err, inplace.ErrInUse)
			} else {
				require.NotErrorIs(t, err, inplace.ErrInUse)
			}
		})
	}
}
