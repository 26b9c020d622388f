package kubectl

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/httpstream" //nolint:staticcheck // what replaces it is in a module that client-go does not use yet
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/operation"
	"github.com/blockmover/blockmover/internal/phase"
	"github.com/blockmover/blockmover/internal/repository/remote"
	"github.com/blockmover/blockmover/mover/cli"
	"github.com/blockmover/blockmover/mover/exposer"
)

// newFilesCommand returns the command `files`. A pod in Velero's namespace has the repository, and serves the blocks of one
// image. The file system is read here: its structures are hostile, and the pod has the credentials.
func newFilesCommand(s *session) *cobra.Command {
	return cli.NewFilesCommand(cli.FilesSource{
		Usage:     "BACKUP NAMESPACE/PVC ",
		Arguments: 2,
		Add:       func(*cobra.Command) {},
		Use: func(ctx context.Context, _ *cobra.Command, args []string, work func(cli.FilesImage) error) error {
			if _, err := cli.ParseVolume(args[1]); err != nil {
				return err
			}
			if err := s.connect(); err != nil {
				return err
			}
			return s.useImage(ctx, args[0], args[1], work)
		},
	})
}

// useImage serves the image of a volume in a backup while work runs.
func (s *session) useImage(ctx context.Context, backup, volume string, work func(cli.FilesImage) error) error {
	upload, err := s.findImage(ctx, backup, volume)
	if err != nil {
		return err
	}
	repositories := &velerov1.BackupRepositoryList{}
	if err := s.Client.List(ctx, repositories, client.InNamespace(s.namespace())); err != nil {
		return fmt.Errorf("list BackupRepositories: %w", err)
	}
	repository, err := repositoryOf(upload, repositories.Items)
	if err != nil {
		return err
	}
	args := cli.FilesServeArgs(cli.AddressOf(s.namespace(), repository), upload.Upload.Status.SnapshotID)
	return s.withJob(ctx, upload.Upload.Spec.BackupStorageLocation, "blockmover-files-", args, func(_ *batchv1.Job, pod string) error {
		return s.serve(ctx, pod, work)
	})
}

// findImage returns the upload of a volume in a backup.
func (s *session) findImage(ctx context.Context, backup, volume string) (*operation.View, error) {
	all, err := operation.List(ctx, s.Client, identity.KindDataUpload, client.InNamespace(s.namespace()))
	if err != nil {
		return nil, err
	}
	var others []string
	for _, u := range all {
		if u.Upload.Labels[velerov1.BackupNameLabel] != backup || u.Status.Phase != phase.Completed || u.Upload.Status.SnapshotID == "" {
			continue
		}
		if u.Claim().String() == volume {
			return u, nil
		}
		others = append(others, u.Claim().String())
	}
	return nil, fmt.Errorf("backup %s has no complete image of %s: it has %s: `kubectl blockmover chain %s` lists the backups of the volume",
		backup, volume, cmp.Or(strings.Join(others, ", "), "none at all"), volume)
}

// serve connects with the server in a pod while work runs.
func (s *session) serve(ctx context.Context, pod string, work func(cli.FilesImage) error) error {
	requests, toServer := io.Pipe()
	answers, toClient := io.Pipe()
	var messages bytes.Buffer
	ended := make(chan error, 1)
	go func() {
		err := s.exec(ctx, pod, cli.FilesConnectCommand(), requests, toClient, &messages)
		_ = toClient.CloseWithError(cmp.Or(err, io.EOF))
		_ = requests.CloseWithError(cmp.Or(err, io.EOF))
		ended <- err
	}()
	image, err := remote.Connect(answers, toServer)
	if err != nil {
		_ = toServer.Close()
		return errors.Join(s.whyLost(ctx, pod, err), ctx.Err())
	}
	err = work(cli.FilesImage{Image: image, Size: image.Size(), ChunkSize: image.ChunkSize()})
	if errors.Is(err, remote.ErrLost) {
		err = s.whyLost(ctx, pod, err)
	}
	_ = image.Close() // the server ends with it
	select {
	case last := <-ended:
		if err == nil && last != nil {
			return fmt.Errorf("end process in pod %s: %w: %s", pod, last, messages.String())
		}
	case <-time.After(endPatience):
		// Everything was read: the pod is deleted now.
	}
	return err
}

// endPatience is how long the process in a pod may take to end.
const endPatience = 10 * time.Second

// whyLost adds what the pod has said to the error of a connection.
func (s *session) whyLost(ctx context.Context, name string, err error) error {
	pod := &corev1.Pod{}
	if ctx.Err() != nil || s.Client.Get(ctx, client.ObjectKey{Namespace: s.namespace(), Name: name}, pod) != nil || pod.Status.Phase == corev1.PodRunning {
		return err
	}
	return fmt.Errorf("%w: pod %s: %s", err, name, strings.TrimSpace(s.lastWords(ctx, pod, "")))
}

// exec runs a command in a pod in Velero's namespace, with binary streams.
func (s *session) exec(ctx context.Context, pod string, command []string, in io.Reader, out, messages io.Writer) error {
	if s.podExec != nil {
		return s.podExec(ctx, pod, command, in, out, messages)
	}
	config, clientset, err := s.clientset()
	if err != nil {
		return err
	}
	url := clientset.CoreV1().RESTClient().Post().Resource("pods").Namespace(s.namespace()).Name(pod).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{
			Container: exposer.ContainerName, Command: command, Stdin: true, Stdout: true, Stderr: true,
		}, clientgoscheme.ParameterCodec).URL()
	webSocket, err := remotecommand.NewWebSocketExecutor(config, "GET", url.String())
	if err != nil {
		return fmt.Errorf("connect to pod %s: %w", pod, err)
	}
	spdy, err := remotecommand.NewSPDYExecutor(config, "POST", url)
	if err != nil {
		return fmt.Errorf("connect to pod %s: %w", pod, err)
	}
	// An API server before 1.31, and some proxies, do not know WebSockets.
	executor, err := remotecommand.NewFallbackExecutor(webSocket, spdy, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
	if err != nil {
		return fmt.Errorf("connect to pod %s: %w", pod, err)
	}
	if err := executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: in, Stdout: out, Stderr: messages}); err != nil {
		return fmt.Errorf("run %s in pod %s: %w", strings.Join(command, " "), pod, err)
	}
	return nil
}
