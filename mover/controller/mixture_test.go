package controller

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/inplace"
	"github.com/blockmover/blockmover/internal/phase"
)

// TestMixtureIsNotBackedUp: a snapshot of a volume that a restore writes into in place, or has left half written, is no
// backup. The snapshot of uploadWorld is of 11:59:00, and its DataUpload of 12:00:00.
func TestMixtureIsNotBackedUp(t *testing.T) {
	at := func(clock string) time.Time {
		at, err := time.Parse(time.DateTime, "2026-03-01 "+clock)
		require.NoError(t, err)
		return at
	}
	restore := func(name, accepted, completed string, is phase.Phase, message string) *velerov2alpha1.DataDownload {
		dd := &velerov2alpha1.DataDownload{
			ObjectMeta: metav1.ObjectMeta{Namespace: veleroNamespace, Name: name, CreationTimestamp: metav1.NewTime(at("10:00:00"))},
			Spec: velerov2alpha1.DataDownloadSpec{
				TargetVolume: velerov2alpha1.TargetVolumeSpec{Namespace: appNamespace, PVC: "data"}, DataMover: identity.DataMover,
				DataMoverConfig: map[string]string{identity.ConfigInPlace: "data-uid", identity.ConfigInPlaceVolume: string(inplace.SameVolume)},
			},
			Status: velerov2alpha1.DataDownloadStatus{Phase: velerov2alpha1.DataDownloadPhase(is), Message: message},
		}
		for clock, to := range map[string]**metav1.Time{accepted: &dd.Status.AcceptedTimestamp, completed: &dd.Status.CompletionTimestamp} {
			if clock != "" {
				*to = &metav1.Time{Time: at(clock)}
			}
		}
		return dd
	}
	other := restore("other", "11:00:00", "", phase.InProgress, "")
	other.Spec.TargetVolume.PVC = "log"
	older := restore("older", "11:00:00", "", phase.InProgress, "")
	older.Spec.DataMoverConfig[identity.ConfigInPlace] = "uid of a PVC that was deleted"
	anew := restore("anew", "11:00:00", "", phase.InProgress, "")
	anew.Spec.DataMoverConfig = nil

	const during, afterHalf = "and may show a mixture of old and restored data: back the volume up again", "restored it in place and did not complete: restore in place again; or delete the Restore"
	for name, c := range map[string]struct {
		restores []*velerov2alpha1.DataDownload
		want     string
	}{
		"none":                            {},
		"runs":                            {[]*velerov2alpha1.DataDownload{restore("r", "11:58:00", "", phase.InProgress, "")}, during},
		"ended since":                     {[]*velerov2alpha1.DataDownload{restore("r", "11:58:00", "11:59:01", phase.Completed, "restored in place")}, during},
		"ended before":                    {[]*velerov2alpha1.DataDownload{restore("r", "11:50:00", "11:58:59", phase.Completed, "restored in place")}, ""},
		"accepted later":                  {[]*velerov2alpha1.DataDownload{restore("r", "12:00:01", "", phase.InProgress, "")}, ""},
		"is queued":                       {[]*velerov2alpha1.DataDownload{restore("r", "", "", phase.New, "")}, ""},
		"failed, and nothing was written": {[]*velerov2alpha1.DataDownload{restore("r", "11:58:00", "11:59:01", phase.Failed, "no node; "+unchanged)}, ""},
		"failed halfway":                  {[]*velerov2alpha1.DataDownload{restore("r", "11:50:00", "11:58:00", phase.Failed, "killed; "+halfRestored)}, afterHalf},
		"canceled halfway":                {[]*velerov2alpha1.DataDownload{restore("r", "11:50:00", "11:58:00", phase.Canceled, "canceled; "+halfRestored)}, afterHalf},
		"another PVC, volume, way":        {[]*velerov2alpha1.DataDownload{other, older, anew}, ""},
		"failed halfway, and made whole": {[]*velerov2alpha1.DataDownload{
			restore("r", "11:50:00", "11:51:00", phase.Failed, "killed; "+halfRestored), restore("s", "11:52:00", "11:53:00", phase.Completed, "restored in place"),
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := uploadWorld(t)
			for _, r := range c.restores {
				require.NoError(t, w.c.Create(w.ctx, r))
			}
			op := w.run(w.uploads, "du")
			if c.want == "" {
				require.Equal(t, phase.Completed, op.Status.Phase, op.Status.Message)
				return
			}
			require.Equal(t, phase.Failed, op.Status.Phase)
			require.Contains(t, op.Status.Message, c.want)
			require.Contains(t, op.Status.Message, "DataDownload/velero/r")
			w.requireNothingLeft([]string{"volume-src"}, nil)
		})
	}
}
