package volumesnapshot

import (
	"context"
	"fmt"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/kube"
	"github.com/blockmover/blockmover/internal/volumesnapshot/internal/content"
)

// WaitForHandle waits until the storage has cut the snapshot. Then the
// VolumeSnapshotContent has a handle and the data is fixed, although the
// VolumeSnapshot may not be ready to use yet. The context bounds the wait. Errors of
// the storage are not final, because the snapshotter's sidecar retries; when the wait
// times out, the error includes the last one seen.
func WaitForHandle(ctx context.Context, reader client.Reader, key client.ObjectKey) (*snapshotv1.VolumeSnapshotContent, error) {
	var found *snapshotv1.VolumeSnapshotContent
	err := Until(ctx, HandleDelay(), func(ctx context.Context) (err error) {
		found, err = ContentWithHandle(ctx, reader, key)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("wait for snapshot handle of VolumeSnapshot %s: %w", key, err)
	}
	return found, nil
}

// ContentWithHandle returns the content of a VolumeSnapshot if it has a handle, else
// an error for Until that says what is missing.
func ContentWithHandle(ctx context.Context, reader client.Reader, key client.ObjectKey) (*snapshotv1.VolumeSnapshotContent, error) {
	vs, err := kube.Find(ctx, reader, key, &snapshotv1.VolumeSnapshot{})
	switch {
	case err != nil:
		return nil, err
	case vs == nil || vs.DeletionTimestamp != nil:
		return nil, ErrGone
	case content.BoundTo(vs) == "":
		if text := errorIn(vs.Status); text != "" {
			return nil, NotYetError(text)
		}
		return nil, NotYetError("it is not bound to a VolumeSnapshotContent yet: is the snapshot controller running?")
	}
	found := &snapshotv1.VolumeSnapshotContent{}
	if err := reader.Get(ctx, client.ObjectKey{Name: content.BoundTo(vs)}, found); err != nil {
		return nil, fmt.Errorf("get VolumeSnapshotContent: %w", err)
	}
	status := found.Status
	if status != nil && status.SnapshotHandle != nil {
		return found, nil
	}
	if status != nil && content.Message(status.Error) != "" {
		return nil, NotYetError(fmt.Sprintf("VolumeSnapshotContent %s: %s", found.Name, content.Message(status.Error)))
	}
	return nil, NotYetError(fmt.Sprintf("VolumeSnapshotContent %s has no snapshot handle yet: is the snapshotter sidecar of driver %s running?",
		found.Name, found.Spec.Driver))
}

func errorIn(status *snapshotv1.VolumeSnapshotStatus) string {
	if status == nil {
		return ""
	}
	return content.Message(status.Error)
}
