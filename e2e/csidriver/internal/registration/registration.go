// Package registration registers a CSI driver with a kubelet, like the node-driver-registrar
// sidecar: a socket in the kubelet's plugin registry answers which driver it is.
package registration

import (
	"context"
	"fmt"
	"log/slog"

	"google.golang.org/grpc"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// csiVersion is the version of CSI that a kubelet speaks.
const csiVersion = "1.0.0"

// Service is the plugin registration service of one driver.
type Service struct {
	registerapi.UnsafeRegistrationServer
	// DriverName is the name of the driver.
	DriverName string
	// Endpoint is the path of the driver's socket, as the kubelet sees it.
	Endpoint string
	Log      *slog.Logger
}

// Server returns a gRPC server of the service.
func (s *Service) Server() *grpc.Server {
	server := grpc.NewServer()
	registerapi.RegisterRegistrationServer(server, s)
	return server
}

// GetInfo says which plugin is behind the socket.
func (s *Service) GetInfo(context.Context, *registerapi.InfoRequest) (*registerapi.PluginInfo, error) {
	return &registerapi.PluginInfo{
		Type:              registerapi.CSIPlugin,
		Name:              s.DriverName,
		Endpoint:          s.Endpoint,
		SupportedVersions: []string{csiVersion},
	}, nil
}

// NotifyRegistrationStatus receives whether the kubelet accepted the driver. It logs a
// failure; the kubelet tries again by itself.
func (s *Service) NotifyRegistrationStatus(_ context.Context, status *registerapi.RegistrationStatus) (*registerapi.RegistrationStatusResponse, error) {
	if !status.GetPluginRegistered() {
		s.Log.Error("kubelet refused the driver", "error", status.GetError())
		return &registerapi.RegistrationStatusResponse{}, nil
	}
	s.Log.Info("kubelet registered the driver", "endpoint", s.Endpoint)
	return &registerapi.RegistrationStatusResponse{}, nil
}

// SocketName is the name of the driver's socket in the plugin registry.
func SocketName(driverName string) string {
	return fmt.Sprintf("%s-reg.sock", driverName)
}
