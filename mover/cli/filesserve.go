package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/spf13/cobra"

	"github.com/blockmover/blockmover/internal/repository/remote"
)

// filesSocket is where `files serve` listens in a pod.
const filesSocket = "/tmp/blockmover-files.sock"

// How long a server waits for its client, and a client for its server to listen.
const (
	clientPatience = 2 * time.Minute
	serverPatience = 30 * time.Second
)

// FilesServeArgs are the arguments of the process that serves an image in a pod.
func FilesServeArgs(address, snapshot string) []string {
	return []string{"files", "serve", "--repo", address, "--snapshot", snapshot}
}

// FilesConnectCommand is the command that connects its standard streams with that process.
func FilesConnectCommand() []string { return []string{"/blockmover", "files", "connect"} }

// newFilesServe and newFilesConnect are the two halves of `kubectl blockmover files` in a pod. What the standard output of the
// first process of a pod says ends in a log of the node, so the image leaves by a process of its own.
func newFilesServe() *cobra.Command {
	var r repoFlags
	var snapshot, socket string
	cmd := &cobra.Command{
		Use:    "serve",
		Short:  "Let one client read an image through a socket, and end with it",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: interruptible(func(ctx context.Context, _ *cobra.Command, _ []string) error {
			listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket})
			if err != nil {
				return fmt.Errorf("wait for client: %w", err)
			}
			defer listener.Close() //nolint:errcheck // it only listens
			return r.useImage(ctx, snapshot, "", func(image FilesImage) error {
				if err := listener.SetDeadline(time.Now().Add(clientPatience)); err != nil {
					return fmt.Errorf("wait for client: %w", err)
				}
				client, err := listener.Accept()
				if err != nil {
					return fmt.Errorf("wait for client: %w", err)
				}
				err = remote.Serve(ctx, image, image.Size, image.ChunkSize, client, client, remote.Patience)
				if closed := client.Close(); !errors.Is(closed, net.ErrClosed) {
					err = errors.Join(err, closed)
				}
				return err
			})
		}),
	}
	r.addReading(cmd)
	cmd.Flags().StringVar(&snapshot, "snapshot", "", "`ID` of the image")
	cmd.Flags().StringVar(&socket, "socket", filesSocket, "`path` of the socket")
	required(cmd.Flags(), "snapshot")
	return cmd
}

func newFilesConnect() *cobra.Command {
	var socket string
	cmd := &cobra.Command{
		Use:    "connect",
		Short:  "Connect the standard streams with a server of an image",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: interruptible(func(ctx context.Context, cmd *cobra.Command, _ []string) error {
			conn, err := dial(ctx, socket)
			if err != nil {
				return err
			}
			defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
			go func() {
				_, _ = io.Copy(conn, cmd.InOrStdin()) // the end of either side is the end of both
				_ = conn.CloseWrite()
			}()
			_, err = io.Copy(cmd.OutOrStdout(), conn)
			return errors.Join(err, conn.Close())
		}),
	}
	cmd.Flags().StringVar(&socket, "socket", filesSocket, "`path` of the socket")
	return cmd
}

// dial waits until somebody listens.
func dial(ctx context.Context, socket string) (*net.UnixConn, error) {
	for end := time.Now().Add(serverPatience); ; {
		conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket})
		if err == nil {
			return conn, nil
		}
		if time.Now().After(end) {
			return nil, fmt.Errorf("connect to server: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}
