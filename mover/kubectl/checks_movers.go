package kubectl

import (
	"context"
	"fmt"
	"slices"
	"time"

	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	"k8s.io/apimachinery/pkg/util/duration"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
)

// untaken is how long a DataUpload waits for a mover at most that runs and has nothing else to do.
const untaken = 5 * time.Minute

// movers are those of Velero itself, and ours.
var movers = []string{"", "velero", identity.DataMover}

// checkMovers looks for DataUploads that no mover takes. `velero backup create --data-mover` accepts any name.
func (s *session) checkMovers(ctx context.Context) ([]Finding, error) {
	uploads := &velerov2alpha1.DataUploadList{}
	if err := s.Client.List(ctx, uploads, client.InNamespace(s.namespace())); err != nil {
		return nil, fmt.Errorf("list DataUploads: %w", err)
	}
	var found []Finding
	for _, u := range uploads.Items {
		waits := time.Since(u.CreationTimestamp.Time)
		isNew := u.Status.Phase == "" || u.Status.Phase == velerov2alpha1.DataUploadPhaseNew
		if !isNew || waits < untaken || slices.Contains(movers, u.Spec.DataMover) {
			continue
		}
		found = append(found, Finding{
			Object: "DataUpload " + u.Namespace + "/" + u.Name, Verdict: Worse,
			What: fmt.Sprintf("data mover %s has not taken it for %s: is there one of that name? Ours is %s", u.Spec.DataMover, duration.HumanDuration(waits), identity.DataMover),
			Do:   fmt.Sprintf(`if not: kubectl -n %s patch dataupload %s --type merge -p '{"status":{"phase":"Canceled"}}', and back up again`, u.Namespace, u.Name),
		})
	}
	return found, nil
}
