package worker

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	"github.com/stretchr/testify/require"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/blockmover/blockmover/internal/task"
)

// recorder is a ProgressSink that can be made to fail.
type recorder struct {
	mu      sync.Mutex
	got     []Progress
	failing atomic.Bool
	calls   atomic.Int32
}

func (r *recorder) Publish(_ context.Context, p Progress) error {
	r.calls.Add(1)
	if r.failing.Load() {
		return errors.New("the API does not answer")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got = append(r.got, p)
	return nil
}

func (r *recorder) published() []Progress {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Progress(nil), r.got...)
}

func TestPublish(t *testing.T) {
	var done, total atomic.Int64
	total.Store(100)
	sink := &recorder{}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		publish(ctx, logr.Discard(), sink, time.Millisecond, func() Progress { return Progress{Done: done.Load(), Total: total.Load()} })
	}()
	awaitLast := func(want Progress) {
		t.Helper()
		require.Eventually(t, func() bool {
			got := sink.published()
			return len(got) > 0 && got[len(got)-1] == want
		}, 10*time.Second, time.Millisecond)
	}
	awaitLast(Progress{0, 100})
	time.Sleep(20 * time.Millisecond)
	require.Len(t, sink.published(), 1, "progress that has not changed is published once")
	done.Store(40)
	awaitLast(Progress{40, 100})
	done.Store(100)
	cancel()
	<-ended
	awaitLast(Progress{100, 100})
}

func TestPublishTheLastProgressAtTheEnd(t *testing.T) {
	sink := &recorder{}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	publish(ctx, logr.Discard(), sink, time.Hour, func() Progress { return Progress{7, 9} })
	require.Equal(t, []Progress{{7, 9}}, sink.published())
}

func TestPublishFailures(t *testing.T) {
	var warnings atomic.Int32
	log := funcr.New(func(string, string) { warnings.Add(1) }, funcr.Options{})
	sink := &recorder{}
	sink.failing.Store(true)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		publish(ctx, log, sink, time.Millisecond, func() Progress { return Progress{1, 2} })
	}()
	require.Eventually(t, func() bool { return sink.calls.Load() > 3 }, 10*time.Second, time.Millisecond)
	sink.failing.Store(false)
	require.Eventually(t, func() bool { return len(sink.published()) > 0 }, 10*time.Second, time.Millisecond)
	cancel()
	<-ended
	require.EqualValues(t, 1, warnings.Load(), "warnings of one series of failures")
	require.Equal(t, []Progress{{1, 2}}, sink.published())
}

func TestStatusSink(t *testing.T) {
	scheme := runtime.NewScheme()
	require.NoError(t, velerov2alpha1.AddToScheme(scheme))
	meta := metav1.ObjectMeta{Namespace: "velero", Name: "operation"}
	c := fake.NewClientBuilder().WithScheme(scheme).WithObjects(
		&velerov2alpha1.DataUpload{ObjectMeta: meta, Status: velerov2alpha1.DataUploadStatus{Phase: "InProgress", Message: "kept"}},
		&velerov2alpha1.DataDownload{ObjectMeta: meta},
	).Build()
	request := task.Request{Namespace: "velero", Name: "operation", Backup: &task.Backup{}}
	sink := newStatusSink(c, request)
	require.NoError(t, sink.Publish(t.Context(), Progress{Done: 1 << 40, Total: 2 << 40}))
	require.NoError(t, sink.Publish(t.Context(), Progress{Done: 0, Total: 2 << 40}))

	upload, download := &velerov2alpha1.DataUpload{}, &velerov2alpha1.DataDownload{}
	require.NoError(t, c.Get(t.Context(), client.ObjectKeyFromObject(&velerov2alpha1.DataUpload{ObjectMeta: meta}), upload))
	require.EqualValues(t, 0, upload.Status.Progress.BytesDone, "0 replaces what was there")
	require.EqualValues(t, 2<<40, upload.Status.Progress.TotalBytes)
	require.Equal(t, velerov2alpha1.DataUploadPhaseInProgress, upload.Status.Phase)
	require.Equal(t, "kept", upload.Status.Message)

	request.Backup, request.Restore = nil, &task.Restore{}
	require.NoError(t, newStatusSink(c, request).Publish(t.Context(), Progress{Done: 3, Total: 4}))
	require.NoError(t, c.Get(t.Context(), client.ObjectKeyFromObject(upload), download))
	require.EqualValues(t, 3, download.Status.Progress.BytesDone)

	request.Name = "gone"
	require.True(t, apierrors.IsNotFound(newStatusSink(c, request).Publish(t.Context(), Progress{1, 1})))
}
