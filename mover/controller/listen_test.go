package controller

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/blockmover/blockmover/internal/operation"
	"github.com/blockmover/blockmover/internal/task"
	"github.com/blockmover/blockmover/mover/exposer"
)

// streams gives each pod that is followed a pipe.
type streams struct {
	opened chan *io.PipeWriter
	fail   bool
}

func (s *streams) Tail(context.Context, *corev1.Pod) (string, error) { return "", nil }

func (s *streams) Follow(ctx context.Context, _ *corev1.Pod) (io.ReadCloser, error) {
	if s.fail {
		return nil, errors.New("connection refused")
	}
	r, w := io.Pipe()
	context.AfterFunc(ctx, func() { r.CloseWithError(ctx.Err()) })
	s.opened <- w
	return r, nil
}

func TestListener(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		logs := &streams{opened: make(chan *io.PipeWriter, 10)}
		l := newListener(&exposer.Exposer{Logs: logs})
		du := &velerov2alpha1.DataUpload{ObjectMeta: metav1.ObjectMeta{Name: "du"}}
		op := &operation.View{Upload: du}
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "pod", UID: "1"}}
		write := func(w io.Writer, line string) {
			_, err := io.WriteString(w, line+"\n")
			require.NoError(t, err)
			synctest.Wait()
		}
		heard := func() bool {
			synctest.Wait()
			select {
			case e := <-l.heard:
				require.Equal(t, "du", e.Object.GetName())
				return true
			default:
				return false
			}
		}
		progress := func(p task.Progress) string {
			line, err := p.Line()
			require.NoError(t, err)
			return line
		}

		l.listen(t.Context(), op, pod)
		log := <-logs.opened
		l.listen(t.Context(), op, pod)
		synctest.Wait()
		require.Empty(t, logs.opened, "a pod is followed once")
		write(log, `{"msg":"Backup begins"}`)
		write(log, progress(task.Progress{Done: 1, Total: 2}))
		require.False(t, heard(), "progress waits for the next poll")
		write(log, progress(task.Progress{Held: true}))
		require.True(t, heard())
		write(log, progress(task.Progress{Held: true, Waiting: "x"}))
		require.False(t, heard(), "it is heard once")

		// The connection is cut.
		require.NoError(t, log.CloseWithError(io.ErrUnexpectedEOF))
		synctest.Wait()
		l.listen(t.Context(), op, pod)
		log = <-logs.opened
		text, err := task.Report{}.Encode()
		require.NoError(t, err)
		write(log, task.ReportLine(text))
		require.True(t, heard())
		synctest.Wait()
		require.Empty(t, l.pods, "after the report, nothing comes")

		// A node that is gone does not close a connection.
		l.listen(t.Context(), op, pod)
		<-logs.opened
		time.Sleep(listenTimeout + time.Second)
		require.Empty(t, l.pods)

		logs.fail = true
		l.listen(t.Context(), op, pod)
		synctest.Wait()
		require.Empty(t, l.pods)

		// Nobody hears it any more.
		logs.fail = false
		l.listen(t.Context(), op, pod)
		log = <-logs.opened
		write(log, task.ReportLine(text))
		time.Sleep(listenTimeout + time.Second)
		require.Empty(t, l.pods)
	})
}
