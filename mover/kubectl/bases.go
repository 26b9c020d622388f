package kubectl

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/volumesnapshot/rehome"
)

// Base is a storage snapshot that is retained for a backup.
type Base struct {
	rehome.Retained
	// Size is that of the volume in the snapshot, in bytes. How much of it the storage keeps, only the
	// storage knows.
	Size int64 `json:"size,omitempty"`
	// Newest is set if the next increment of the volume can begin at it.
	Newest bool `json:"newest"`
	// Group is the handle of the group in the storage, which goes with its last member.
	Group string `json:"group,omitempty"`
}

func newBasesCommand(s *session) *cobra.Command {
	var format output
	cmd := &cobra.Command{
		Use:   "bases",
		Short: "Show the storage snapshots that are retained, and for what",
		Long: "Bases shows the storage snapshots that are retained after an upload: as the base of the next\n" +
			"increment, or because the rule of the volume says always. Deleting one costs a full backup.",
		Args: cobra.NoArgs,
		RunE: s.run(func(ctx context.Context, _ []string) error {
			if err := format.check(); err != nil {
				return err
			}
			found, err := s.bases(ctx)
			if err == nil && len(found) == 0 && (format == "table" || format == "wide") {
				_, err := fmt.Fprintf(s.Streams.ErrOut, "No storage snapshot is retained in namespace %s.\n", s.namespace())
				return err
			}
			rows := make([][]any, 0, len(found))
			for _, b := range found {
				rows = append(rows, b.row(time.Now()))
			}
			return errors.Join(format.print(s.Streams.Out, found, basesColumns, rows), err)
		}),
	}
	format.add(cmd.Flags())
	return cmd
}

// bases lists the retained snapshots by volume, oldest first. With an error, it lists those that can
// be read.
func (s *session) bases(ctx context.Context) ([]Base, error) {
	retained, err := rehome.New(s.Client, s.Client, s.namespace()).ListRetained(ctx)
	if meta.IsNoMatchError(err) {
		return nil, nil // no snapshots in this cluster
	}
	slices.SortFunc(retained, func(a, b rehome.Retained) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.PVC, b.PVC), a.SnapshotTime.Compare(b.SnapshotTime))
	})
	contents := &snapshotv1.VolumeSnapshotContentList{}
	err = errors.Join(err, s.Client.List(ctx, contents, client.HasLabels{identity.LabelRetained}))
	statuses := map[string]*snapshotv1.VolumeSnapshotContentStatus{}
	for i := range contents.Items {
		statuses[contents.Items[i].Name] = contents.Items[i].Status
	}
	found := make([]Base, 0, len(retained))
	for n, r := range retained {
		b := Base{Retained: r}
		b.Newest = n+1 == len(retained) || retained[n+1].Namespace != r.Namespace || retained[n+1].PVC != r.PVC
		if status := statuses[r.Name]; status != nil {
			b.Size, b.Group = ptr.Deref(status.RestoreSize, 0), ptr.Deref(status.VolumeGroupSnapshotHandle, "")
		}
		found = append(found, b)
	}
	return found, err
}

var basesColumns = []column{
	{"VOLUME", false},
	{"BACKUP", false},
	{"RULE", false},
	{"NEWEST", false},
	{"SIZE", false},
	{"AGE", false},
	{"DRIVER", false},
	{"SNAPSHOT", true},
	{"GROUP", true},
	{"LOCATION", true},
	{"NAME", true},
}

func (b Base) row(now time.Time) []any {
	newest := "no"
	if b.Newest {
		newest = "yes"
	}
	volume := unknown
	if b.Size > 0 {
		volume = size(b.Size)
	}
	return []any{
		b.Namespace + "/" + b.PVC, b.Backup, string(b.Retention), newest, volume, age(b.SnapshotTime, now), b.Driver,
		b.SnapshotHandle, or(b.Group), or(b.Location), b.Name,
	}
}
