package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vmware-tanzu/velero/pkg/apis/velero/shared"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/mover/heap"
)

// settleTime is how long a manager runs on after all operations are secured: its sweep, and a scrape of its metrics.
const settleTime = 40 * time.Second

// memoryTable prints the peak memory of a manager that has so many DataUploads: one half queued, the other one ended.
func memoryTable(ctx context.Context, path string, o options) error {
	fmt.Printf("%12s %12s\n", "DataUploads", "peak memory")
	for _, n := range o.memory {
		w, err := newWorld(ctx, o)
		var peak int64
		if err == nil {
			peak, err = w.memory(ctx, path, o, n)
		}
		if err := errors.Join(err, w.close()); err != nil {
			return fmt.Errorf("measure %d DataUploads: %w", n, err)
		}
		fmt.Printf("%12d %8.1f MiB\n", n, float64(peak)/(1<<20))
	}
	return nil
}

func (w *world) memory(ctx context.Context, path string, o options, n int) (int64, error) {
	ended := n / 2
	if err := w.create(ctx, n-ended); err != nil {
		return 0, err
	}
	for i := range ended {
		if err := w.createEnded(ctx, fmt.Sprintf("ended-%04d", i)); err != nil {
			return 0, err
		}
	}
	if err := w.startManager(path, o); err != nil {
		return 0, err
	}
	if err := w.waitUntilSecured(ctx, n-ended); err != nil {
		return 0, err
	}
	if err := sleep(ctx, settleTime); err != nil {
		return 0, err
	}
	if _, err := w.requests(ctx); err != nil { // a scrape looks at all operations
		return 0, err
	}
	return heap.Peak(w.manager.Process.Pid)
}

// createEnded makes a DataUpload as it is after its end.
func (w *world) createEnded(ctx context.Context, name string) error {
	now := metav1.Now()
	const size = 1 << 30
	err := w.client.Create(ctx, &velerov2alpha1.DataUpload{
		ObjectMeta: metav1.ObjectMeta{Namespace: velero, Name: name, Annotations: map[string]string{
			identity.AnnotationAttempt: `{"number":1,"started":true,"bytesRead":1073741824}`,
			identity.AnnotationOutcome: fmt.Sprintf(`{"phase":"Completed","at":%q}`, now.UTC().Format(time.RFC3339)),
		}},
		Spec: velerov2alpha1.DataUploadSpec{
			SnapshotType: velerov2alpha1.SnapshotTypeCSI,
			CSISnapshot:  &velerov2alpha1.CSISnapshotSpec{VolumeSnapshot: name, StorageClass: "fast", SnapshotClass: "fast", Driver: driver},
			SourcePVC:    name, SourceNamespace: app, DataMover: identity.DataMover, BackupStorageLocation: "default",
			OperationTimeout: metav1.Duration{Duration: time.Hour},
		},
		Status: velerov2alpha1.DataUploadStatus{
			Phase: velerov2alpha1.DataUploadPhaseCompleted, SnapshotID: "0123456789abcdef0123456789abcdef", Node: "node-1",
			StartTimestamp: &now, CompletionTimestamp: &now, Progress: shared.DataMoveOperationProgress{TotalBytes: size, BytesDone: size},
		},
	})
	if err != nil {
		return fmt.Errorf("create DataUpload: %w", err)
	}
	return nil
}
