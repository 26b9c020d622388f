package volumesnapshot

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/volumesnapshot/internal/content"
)

// ClassOf returns the VolumeSnapshotClass of a driver that nobody has named one for, or "" if the
// driver has none: its default first, then Velero's.
func ClassOf(ctx context.Context, reader client.Reader, driver string) (string, error) {
	classes := &snapshotv1.VolumeSnapshotClassList{}
	if err := reader.List(ctx, classes); err != nil {
		return "", fmt.Errorf("list VolumeSnapshotClasses: %w", err)
	}
	ofDriver := slices.DeleteFunc(classes.Items, func(c snapshotv1.VolumeSnapshotClass) bool { return c.Driver != driver })
	if len(ofDriver) == 0 {
		return "", nil
	}
	best := slices.MinFunc(ofDriver, func(a, b snapshotv1.VolumeSnapshotClass) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), strings.Compare(a.Name, b.Name))
	})
	return best.Name, nil
}

func rank(c snapshotv1.VolumeSnapshotClass) int {
	switch {
	case c.Annotations[content.AnnotationDefaultClass] == "true":
		return 0
	case c.Labels["velero.io/csi-volumesnapshot-class"] == "true":
		return 1
	}
	return 2
}
