package worker

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/go-logr/logr"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/task"
)

const (
	progressInterval = time.Second
	// progressTimeout bounds one publication. Progress that is late is worth
	// nothing, and the last one must not hold up the report.
	progressTimeout = 5 * time.Second
)

// Progress is how far an operation is, in bytes of the volume.
type Progress struct {
	Done, Total int64
}

// ProgressSink shows progress to the user. An error of it never fails an
// operation.
type ProgressSink interface {
	Publish(ctx context.Context, p Progress) error
}

// publish sends what read returns to the sink, each time that it has changed
// when the interval is over, and a last time when ctx ends.
func publish(ctx context.Context, log logr.Logger, sink ProgressSink, interval time.Duration, read func() Progress) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	var published Progress
	failing := false
	send := func() {
		p := read()
		if p == published {
			return
		}
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), progressTimeout)
		defer cancel()
		err := sink.Publish(bounded, p)
		switch {
		case err == nil:
			published, failing = p, false
		case !failing: // one line for each series of failures
			failing = true
			log.Info("Cannot publish progress", "severity", "warning", "error", err.Error())
		}
	}
	for {
		select {
		case <-ctx.Done():
			send()
			return
		case <-ticker.C:
			send()
		}
	}
}

// statusSink patches status.progress of the DataUpload or DataDownload. The
// worker owns this field and no other.
type statusSink struct {
	client client.Client
	object func() client.Object
}

func newStatusSink(c client.Client, r task.Request) statusSink {
	meta := metav1.ObjectMeta{Namespace: r.Namespace, Name: r.Name}
	return statusSink{client: c, object: func() client.Object {
		if r.Backup != nil {
			return &velerov2alpha1.DataUpload{ObjectMeta: meta}
		}
		return &velerov2alpha1.DataDownload{ObjectMeta: meta}
	}}
}

// Publish implements ProgressSink.
func (s statusSink) Publish(ctx context.Context, p Progress) error {
	patch, err := json.Marshal(map[string]any{
		"status": map[string]any{
			"progress": map[string]int64{"bytesDone": p.Done, "totalBytes": p.Total},
		},
	})
	if err != nil {
		return fmt.Errorf("encode progress: %w", err)
	}
	// Neither kind has a status subresource.
	if err := s.client.Patch(ctx, s.object(), client.RawPatch(types.MergePatchType, patch)); err != nil {
		return fmt.Errorf("patch progress: %w", err)
	}
	return nil
}
