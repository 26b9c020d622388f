package kubectl

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/repository/remote"
)

// blocks is an image in memory.
type blocks []byte

func (b blocks) ReadAt(p []byte, off int64) (int, error) {
	return strings.NewReader(string(b)).ReadAt(p, off)
}

func (b blocks) IsZero(_ context.Context, n int64) (bool, error) {
	return block.IsZero(b[n*4096 : (n+1)*4096]), nil
}

func (c *call) files(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd := newFilesCommand(c.session)
	var out strings.Builder
	cmd.SetOut(&out)
	cmd.SetErr(io.Discard)
	cmd.SetArgs(args)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	err := cmd.ExecuteContext(t.Context())
	return out.String(), err
}

// TestFiles reads an image that a pod serves: here, a process in its place.
func TestFiles(t *testing.T) {
	c, jobs := verifier(t, "", corev1.PodRunning, image("u1", "daily-1", "data", "s1", time.Hour), image("u2", "daily-2", "data", "s2", time.Minute))
	swap := make(blocks, 64<<10)
	copy(swap[4086:], "SWAPSPACE2")
	var commands [][]string
	c.podExec = func(ctx context.Context, _ string, command []string, in io.Reader, out, _ io.Writer) error {
		commands = append(commands, command)
		return remote.Serve(ctx, swap, int64(len(swap)), 4096, io.NopCloser(in), out, time.Minute)
	}
	out, err := c.files(t, "ls", "daily-1", "shop/data")
	require.NoError(t, err)
	require.Contains(t, out, "it is swap space")
	require.Equal(t, [][]string{{"/blockmover", "files", "connect"}}, commands)
	require.Len(t, *jobs, 1)
	spec := (*jobs)[0].Spec.Template.Spec
	require.Equal(t, []string{"files", "serve", "--repo", "velero://velero/shop-default-kopia", "--snapshot", "s1"}, spec.Containers[0].Args)
	require.NotNil(t, (*jobs)[0].Spec.ActiveDeadlineSeconds)
	require.Empty(t, spec.Containers[0].VolumeDevices)
	left := &batchv1.JobList{}
	require.NoError(t, c.Client.List(t.Context(), left))
	require.Empty(t, left.Items)

	_, err = c.files(t, "cat", "daily-1", "shop/data", "/x")
	require.ErrorContains(t, err, "disk can't be read")
	for want, args := range map[string][]string{
		"backup daily-3 has no complete image of shop/data: it has none at all: `kubectl blockmover chain shop/data` lists": {"ls", "daily-3", "shop/data"},
		"backup daily-1 has no complete image of shop/log: it has shop/data: `kubectl blockmover chain shop/log` lists":     {"ls", "daily-1", "shop/log"},
		"is not NAMESPACE/PVC":                  {"ls", "daily-1", "data"},
		"usage: files ls BACKUP NAMESPACE/PVC ": {"ls", "daily-1"},
	} {
		_, err := c.files(t, args...)
		require.ErrorContains(t, err, want)
	}
}

// TestFilesOfAPodThatFails: its last words are the error.
func TestFilesOfAPodThatFails(t *testing.T) {
	c, _ := verifier(t, "blockmover: open repository: no such host\n", corev1.PodFailed, image("u1", "daily-1", "data", "s1", time.Hour))
	c.podExec = func(context.Context, string, []string, io.Reader, io.Writer, io.Writer) error {
		return errors.New("container is not running")
	}
	_, err := c.files(t, "ls", "daily-1", "shop/data")
	require.ErrorContains(t, err, "no such host")
	require.ErrorContains(t, err, "container is not running")
}
