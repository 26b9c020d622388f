// Command csidriver is a CSI driver for tests: controller and node of one
// machine, volumes in files on loop devices, with snapshots, group snapshots,
// clones, expansion and changed block tracking. It needs root, and mkfs.xfs,
// mkfs.ext4, xfs_growfs and resize2fs.
//
//	csidriver --endpoint unix:///run/csi.sock --driver-name NAME --node-id NODE --state-dir DIR [flags]
//	csidriver cleanup --state-dir DIR
//
// DIR/options.json makes the driver misbehave while it runs; see package options. A driver
// that is terminated leaves volumes attached, and finds them again when it is started with
// the same state directory. cleanup detaches and unmounts what belongs to a state directory,
// and leaves the files. It also works after the mount namespace of the driver is gone.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/blockmover/blockmover/e2e/csidriver/internal/driver"
	"github.com/blockmover/blockmover/e2e/csidriver/internal/pool"
	"github.com/blockmover/blockmover/e2e/csidriver/internal/registration"
	"github.com/blockmover/blockmover/e2e/csidriver/internal/volume"
)

// stopTimeout is how long calls may continue after a signal to terminate.
const stopTimeout = 10 * time.Second

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "csidriver:", err)
		os.Exit(1)
	}
}

// run is main with its surroundings as arguments, and an error.
func run(ctx context.Context, arguments []string, logTo io.Writer) error {
	if len(arguments) > 0 && arguments[0] == "cleanup" {
		return cleanup(arguments[1:])
	}
	settings, err := parseFlags(arguments)
	if err != nil {
		return err
	}
	return serve(ctx, settings, slog.New(slog.NewTextHandler(logTo, nil)).With("driver", settings.driverName))
}

// cleanup is the subcommand of that name.
func cleanup(arguments []string) error {
	flags := flag.NewFlagSet("csidriver cleanup", flag.ContinueOnError)
	stateDir := flags.String("state-dir", "", "directory whose pool is unmounted and detached")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	if *stateDir == "" {
		return errors.New("flag --state-dir is missing")
	}
	absolute, err := filepath.Abs(*stateDir)
	if err != nil {
		return fmt.Errorf("resolve state directory: %w", err)
	}
	return pool.Cleanup(absolute)
}

// settings are the flags of the driver.
type settings struct {
	socket           string
	driverName       string
	nodeID           string
	stateDir         string
	poolSize         int64
	registrationPath string
	registryDir      string
}

func parseFlags(arguments []string) (settings, error) {
	var parsed settings
	flags := flag.NewFlagSet("csidriver", flag.ContinueOnError)
	endpoint := flags.String("endpoint", "", "socket to serve CSI on, as unix:///path")
	poolSize := flags.String("pool-size", "64Gi", "size of a new pool, which is sparse")
	flags.StringVar(&parsed.driverName, "driver-name", "", "name of the driver, as in StorageClass.provisioner")
	flags.StringVar(&parsed.nodeID, "node-id", "", "name of this node")
	flags.StringVar(&parsed.stateDir, "state-dir", "", "directory for the pool, the records and options.json")
	flags.StringVar(&parsed.registrationPath, "kubelet-registration-path", "", "path of the socket as the kubelet sees it; default: that of --endpoint")
	flags.StringVar(&parsed.registryDir, "kubelet-plugin-registry", "", "plugin registry of a kubelet to register with; default: none")
	if err := flags.Parse(arguments); err != nil {
		return settings{}, err
	}
	if flags.NArg() > 0 {
		return settings{}, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	for name, value := range map[string]string{"endpoint": *endpoint, "driver-name": parsed.driverName, "node-id": parsed.nodeID, "state-dir": parsed.stateDir} {
		if value == "" {
			return settings{}, fmt.Errorf("flag --%s is missing", name)
		}
	}
	path, isUnix := strings.CutPrefix(*endpoint, "unix://")
	if !isUnix {
		return settings{}, fmt.Errorf("endpoint %q is not of the form unix:///path", *endpoint)
	}
	parsed.socket = path
	if parsed.registrationPath == "" {
		parsed.registrationPath = path
	}
	size, err := resource.ParseQuantity(*poolSize)
	if err != nil {
		return settings{}, fmt.Errorf("parse pool size %q: %w", *poolSize, err)
	}
	parsed.poolSize = size.Value()
	// The mount table has absolute paths.
	if parsed.stateDir, err = filepath.Abs(parsed.stateDir); err != nil {
		return settings{}, fmt.Errorf("resolve state directory: %w", err)
	}
	return parsed, nil
}

// serve runs the driver until ctx ends.
func serve(ctx context.Context, settings settings, log *slog.Logger) error {
	opened, err := pool.Open(settings.stateDir, settings.poolSize)
	if err != nil {
		return err
	}
	store, err := volume.Open(settings.stateDir, opened)
	if err != nil {
		return err
	}
	csiDriver := driver.New(driver.Config{
		Name: settings.driverName, NodeID: settings.nodeID, StateDir: settings.stateDir, Log: log,
	}, store)

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return serveOn(ctx, csiDriver.Server(), settings.socket) })
	if settings.registryDir != "" {
		service := &registration.Service{DriverName: settings.driverName, Endpoint: settings.registrationPath, Log: log}
		socket := filepath.Join(settings.registryDir, registration.SocketName(settings.driverName))
		group.Go(func() error { return serveOn(ctx, service.Server(), socket) })
	}
	log.Info("driver started", "socket", settings.socket, "state", settings.stateDir)
	return group.Wait()
}

// serveOn serves on a Unix socket until ctx ends, and then lets running calls end.
func serveOn(ctx context.Context, server *grpc.Server, socket string) error {
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove stale socket: %w", err)
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return fmt.Errorf("listen on socket: %w", err)
	}
	stopped := context.AfterFunc(ctx, func() {
		force := time.AfterFunc(stopTimeout, server.Stop)
		defer force.Stop()
		server.GracefulStop()
	})
	defer stopped()
	if err := server.Serve(listener); err != nil {
		return fmt.Errorf("serve on %s: %w", socket, err)
	}
	return nil
}
