package worker

import (
	"context"
	"time"

	"github.com/go-logr/logr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/operation"
	"github.com/blockmover/blockmover/internal/task"
)

const (
	progressInterval = time.Second
	// progressTimeout bounds one publication. Late progress is useless, and the last
	// publication must not delay the report.
	progressTimeout = 5 * time.Second
)

// Progress is how much of an operation is done, in bytes of the volume.
type Progress struct {
	Done, Total int64
}

// ProgressSink shows progress to the user. Its errors never fail an operation.
type ProgressSink interface {
	Publish(ctx context.Context, p Progress) error
}

// publish sends what read returns to the sink: at each interval if it has changed, and a last
// time when ctx ends.
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

// statusSink patches status.progress of a DataUpload or DataDownload. The worker owns only
// this field.
type statusSink struct {
	client    client.Client
	operation identity.Operation
}

func newStatusSink(c client.Client, r task.Request) statusSink {
	op := identity.Operation{Kind: identity.KindDataDownload, Namespace: r.Namespace, Name: r.Name, UID: r.OperationID}
	if r.Backup != nil {
		op.Kind = identity.KindDataUpload
	}
	return statusSink{client: c, operation: op}
}

// Publish implements ProgressSink.
func (s statusSink) Publish(ctx context.Context, p Progress) error {
	return operation.PublishProgress(ctx, s.client, s.operation, p.Done, p.Total)
}
