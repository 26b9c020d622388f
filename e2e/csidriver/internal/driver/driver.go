// Package driver serves the CSI services of a node that has its storage itself.
//
// One process is controller and node at once: Identity, Controller,
// GroupController, SnapshotMetadata and Node. Nothing is attached by the
// controller (the CSIDriver object has attachRequired false); a volume becomes a
// loop device when its node stages it. The driver behaves as the specification
// says unless its options file tells it not to; see package options.
package driver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/blockmover/blockmover/e2e/csidriver/internal/options"
	"github.com/blockmover/blockmover/e2e/csidriver/internal/volume"
)

// Config is what distinguishes one driver from another.
type Config struct {
	// Name is the driver's name, as in StorageClass.provisioner.
	Name string
	// NodeID is the one node that the volumes are on.
	NodeID string
	// StateDir has the options file, and the store's files.
	StateDir string
	Log      *slog.Logger
}

// Driver is all services over one store.
type Driver struct {
	config Config
	store  *volume.Store
	node   *nodeServer
}

// New returns a driver of the volumes in store.
func New(config Config, store *volume.Store) *Driver {
	return &Driver{config: config, store: store, node: &nodeServer{config: config, store: store}}
}

// Server returns a gRPC server of all services.
func (d *Driver) Server() *grpc.Server {
	server := grpc.NewServer(grpc.UnaryInterceptor(d.unary), grpc.StreamInterceptor(d.stream))
	controller := &controllerServer{config: d.config, store: d.store}
	csi.RegisterIdentityServer(server, &identityServer{name: d.config.Name})
	csi.RegisterControllerServer(server, controller)
	csi.RegisterGroupControllerServer(server, &groupServer{config: d.config, store: d.store})
	csi.RegisterSnapshotMetadataServer(server, &metadataServer{config: d.config, store: d.store})
	csi.RegisterNodeServer(server, d.node)
	return server
}

// unary prepares, times and logs a call and gives its error a gRPC code.
func (d *Driver) unary(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	began := time.Now()
	err := d.prepare(info.FullMethod)
	var response any
	if err == nil {
		response, err = handler(ctx, request)
	}
	err = withCode(err)
	d.log(info.FullMethod, request, began, err)
	return response, err
}

// stream does for streams what unary does for calls.
func (d *Driver) stream(service any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	began := time.Now()
	err := d.prepare(info.FullMethod)
	if err == nil {
		err = handler(service, stream)
	}
	err = withCode(err)
	d.log(info.FullMethod, nil, began, err)
	return err
}

// prepare checks the options file before each call, so that a mistake in it
// shows at once, and shrinks the volumes that it names. The Identity service
// answers in any case: a sidecar exits when that fails.
func (d *Driver) prepare(method string) error {
	if strings.HasPrefix(method, "/csi.v1.Identity/") {
		return nil
	}
	loaded, err := d.config.options()
	if err != nil {
		return err
	}
	for handle, size := range loaded.ShrinkTo {
		existing, err := d.store.Volume(handle)
		if errors.Is(err, volume.ErrNotFound) || err == nil && existing.Size <= size {
			continue
		}
		if err != nil {
			return err
		}
		if _, err := d.store.Resize(handle, size); err != nil {
			return fmt.Errorf("shrink volume as the options say: %w", err)
		}
		d.config.Log.Info("volume shrunk", "volume", handle, "from", existing.Size, "to", size)
	}
	return nil
}

// options reads the options file as it is now.
func (c Config) options() (options.Options, error) {
	loaded, err := options.Load(filepath.Join(c.StateDir, "options.json"))
	if err != nil {
		return options.Options{}, status.Error(codes.FailedPrecondition, err.Error())
	}
	return loaded, nil
}

// log writes a line about a call.
func (d *Driver) log(method string, request any, began time.Time, err error) {
	attributes := []any{"method", method, "duration", time.Since(began).Round(time.Microsecond)}
	if named, ok := request.(interface{ GetName() string }); ok {
		attributes = append(attributes, "name", named.GetName())
	}
	if ofVolume, ok := request.(interface{ GetVolumeId() string }); ok {
		attributes = append(attributes, "volume", ofVolume.GetVolumeId())
	}
	if ofSnapshot, ok := request.(interface{ GetSnapshotId() string }); ok {
		attributes = append(attributes, "snapshot", ofSnapshot.GetSnapshotId())
	}
	if err != nil {
		d.config.Log.Error("call failed", append(attributes, "error", err)...)
		return
	}
	d.config.Log.Info("call", attributes...)
}

// withCode gives an error the gRPC code that the specification wants for it.
func withCode(err error) error {
	if err == nil {
		return nil
	}
	if _, hasCode := status.FromError(err); hasCode {
		return err
	}
	return status.Error(codeOf(err), err.Error())
}

func codeOf(err error) codes.Code {
	switch {
	case errors.Is(err, volume.ErrNotFound):
		return codes.NotFound
	case errors.Is(err, volume.ErrIncompatible):
		return codes.AlreadyExists
	case errors.Is(err, volume.ErrNotReady):
		return codes.Unavailable
	case errors.Is(err, volume.ErrSize):
		return codes.OutOfRange
	case errors.Is(err, volume.ErrMember):
		return codes.InvalidArgument
	case errors.Is(err, volume.ErrInUse):
		return codes.FailedPrecondition
	case errors.Is(err, unix.ENOSPC):
		return codes.ResourceExhausted
	case errors.Is(err, context.Canceled):
		return codes.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return codes.DeadlineExceeded
	default:
		return codes.Internal
	}
}

// require returns InvalidArgument for the first empty one of the named fields,
// given as name, value, name, value.
func require(fields ...string) error {
	for i := 0; i+1 < len(fields); i += 2 {
		if fields[i+1] == "" {
			return status.Errorf(codes.InvalidArgument, "%s is missing", fields[i])
		}
	}
	return nil
}

// injected turns the text of an error option into an error: "CODE: text", or
// Internal when it begins with no code.
func injected(text string) error {
	name, rest, found := strings.Cut(text, ": ")
	var code codes.Code
	if found && code.UnmarshalJSON([]byte(`"`+name+`"`)) == nil {
		return status.Error(code, rest)
	}
	return status.Error(codes.Internal, text)
}

// topology is where the driver's volumes can be used.
func (c Config) topology() *csi.Topology {
	return &csi.Topology{Segments: map[string]string{c.topologyKey(): c.NodeID}}
}

func (c Config) topologyKey() string { return "topology." + c.Name + "/node" }
