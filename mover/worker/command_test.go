package worker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/repository"
	"github.com/blockmover/blockmover/internal/task"
)

func TestSupervise(t *testing.T) {
	broken := errors.New("device is gone")
	upgrade := errors.New("format upgrade")
	tests := map[string]struct {
		work func(ctx context.Context, cancel context.CancelCauseFunc) (task.Report, error)
		want error
	}{
		"success": {
			work: func(context.Context, context.CancelCauseFunc) (task.Report, error) {
				return task.Report{BytesRead: 1}, nil
			},
		},
		"error": {
			work: func(context.Context, context.CancelCauseFunc) (task.Report, error) {
				return task.Report{BytesRead: 1}, broken
			},
			want: broken,
		},
		"canceled": {
			work: func(ctx context.Context, cancel context.CancelCauseFunc) (task.Report, error) {
				cancel(upgrade)
				return task.Report{BytesRead: 1}, ctx.Err()
			},
			want: upgrade,
		},
		"success although canceled": {
			work: func(_ context.Context, cancel context.CancelCauseFunc) (task.Report, error) {
				cancel(upgrade)
				return task.Report{BytesRead: 1}, nil
			},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			report, err := supervise(ctx, logr.Discard(), time.Minute, func() (task.Report, error) { return test.work(ctx, cancel) })
			require.Equal(t, test.want, err)
			require.Equal(t, task.Report{BytesRead: 1}, report)
		})
	}
}

func TestSupervisePanic(t *testing.T) {
	_, err := supervise(t.Context(), logr.Discard(), time.Minute, func() (task.Report, error) {
		panic("index out of range")
	})
	require.ErrorContains(t, err, "panic: index out of range")
}

func TestSuperviseWaitsNoLongerThanGrace(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	release := make(chan struct{})
	defer close(release)
	cancel(errStopped)
	_, err := supervise(ctx, logr.Discard(), time.Millisecond, func() (task.Report, error) {
		<-release // like an access to a device that hangs
		return task.Report{}, nil
	})
	require.ErrorIs(t, err, errStopped)
}

func TestCancelOnSignal(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := cancelOnSignal(cancel)
	defer stop()
	require.NoError(t, syscall.Kill(os.Getpid(), syscall.SIGTERM))
	select {
	case <-ctx.Done():
		require.ErrorIs(t, context.Cause(ctx), errStopped)
	case <-time.After(10 * time.Second):
		t.Fatal("SIGTERM did not cancel")
	}
}

// runCommand runs the command in this process and returns its report.
func runCommand(t *testing.T, args ...string) (task.Report, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "termination-log")
	cmd := NewCommand()
	cmd.SetArgs(append([]string{"--termination-log", path}, args...))
	cmd.SetOut(&bytes.Buffer{})
	cmd.SetErr(&bytes.Buffer{})
	err := cmd.ExecuteContext(t.Context())
	text, readErr := os.ReadFile(path)
	require.NoError(t, readErr)
	report, decodeErr := task.DecodeReport(string(text))
	require.NoError(t, decodeErr)
	return report, err
}

// Whatever is wrong with the pod, there is a report that says it.
func TestCommandReports(t *testing.T) {
	request := task.Request{
		Namespace: "velero", Name: "download", OperationID: "dd-1.2", Device: "/dev/blockmover", BackupRepository: "app-default-kopia",
		Volume: repository.VolumeKey{Namespace: "app", PVC: "data"}, Restore: &task.Restore{SnapshotID: "k1"},
	}
	valid, err := request.Encode()
	require.NoError(t, err)
	for name, test := range map[string]struct{ request, want string }{
		"no task":         {"", "decode task request"},
		"unknown version": {strings.Replace(valid, `"version":1`, `"version":9`, 1), "version is 9, want 1"},
		"no cluster":      {valid, "Kubernetes API"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(task.EnvRequest, test.request)
			t.Setenv("KUBECONFIG", filepath.Join(t.TempDir(), "none"))
			t.Setenv("KUBERNETES_SERVICE_HOST", "")
			report, err := runCommand(t)
			require.ErrorIs(t, err, ErrReported)
			require.Contains(t, report.Error, test.want)
		})
	}
}

func TestCommandWithoutTask(t *testing.T) {
	t.Setenv(task.EnvRequest, "")
	require.NoError(t, os.Unsetenv(task.EnvRequest))
	report, err := runCommand(t, "--zap-log-level", "error")
	require.ErrorIs(t, err, ErrReported)
	require.Contains(t, report.Error, task.EnvRequest)
}

func TestCommandCannotReport(t *testing.T) {
	t.Setenv(task.EnvRequest, "{}")
	cmd := NewCommand()
	cmd.SetArgs([]string{"--termination-log", filepath.Join(t.TempDir(), "no", "such", "directory")})
	cmd.SetErr(&bytes.Buffer{})
	cmd.SetOut(&bytes.Buffer{})
	err := cmd.ExecuteContext(t.Context())
	require.ErrorIs(t, err, os.ErrNotExist)
	require.NotErrorIs(t, err, ErrReported)
}

// A pod that is told to stop leaves no report. The manager decides what that means. The log has the report
// of a success alone, so that the manager need not wait for the end of the pod.
func TestConclude(t *testing.T) {
	o := options{terminationLog: filepath.Join(t.TempDir(), "termination-log")}
	var out bytes.Buffer
	err := o.conclude(logr.Discard(), &out, task.Report{BytesRead: 1}, fmt.Errorf("%w: terminated", errStopped))
	require.ErrorIs(t, err, ErrReported)
	require.NoFileExists(t, o.terminationLog)
	require.ErrorIs(t, o.conclude(logr.Discard(), &out, task.Report{BytesRead: 1}, errors.New("input/output error")), ErrReported)
	require.FileExists(t, o.terminationLog)
	require.Empty(t, out.String())

	require.NoError(t, o.conclude(logr.Discard(), &out, task.Report{BytesRead: 1}, nil))
	text, err := os.ReadFile(o.terminationLog)
	require.NoError(t, err)
	want, err := task.DecodeReport(string(text))
	require.NoError(t, err)
	got, ok := task.LastReport(out.String())
	require.True(t, ok)
	require.Equal(t, want, got)
}
