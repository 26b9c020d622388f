// Package snapshotmetadata is the cbt.Source of CSI. It calls the SnapshotMetadata service,
// which the external-snapshot-metadata sidecar serves beside a CSI driver.
//
// The target is named as a VolumeSnapshot in Kubernetes. The base is named by its CSI
// snapshot handle, so it needs no Kubernetes object. Each call carries the caller's right to
// read: a service account token for the audience of the driver's SnapshotMetadataService. It
// is read from its file each time, because the kubelet renews it there.
//
// Each call has a connection of its own, which is closed with it. So a stream that broke is
// resumed over a new connection, to wherever the service now answers, and nothing has to be
// closed at the end.
//
// # Which errors may be resumed
//
// A broken transport or a restarting sidecar causes the codes Unavailable, Aborted, Internal,
// Canceled and DeadlineExceeded. They wrap cbt.ErrInterrupted. The sidecar also answers
// Unavailable and Internal to what will not change by itself, such as a VolumeSnapshot
// without a class. No code tells these apart, so the caller must bound its patience. A
// certificate that the CA did not sign is Unavailable, too, and is not resumed.
package snapshotmetadata

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/kubernetes-csi/external-snapshot-metadata/pkg/api"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/cbt"
)

const (
	// DefaultMaxResults is the number of blocks to ask for in a message. It is about 20 KiB:
	// little to repeat after a break, and a thousand messages for a million blocks.
	DefaultMaxResults = 1024

	// maxMessageBytes bounds one message. A block takes at most 24 bytes on the wire, so
	// there is room for 700,000 blocks from a driver that sends more than it is asked for.
	maxMessageBytes = 16 << 20

	// tcpKeepAlive finds a node that is gone. With the kernel's nine probes, that takes 150
	// s.
	tcpKeepAlive = 15 * time.Second

	// pingInterval finds a peer that is gone behind a connection that still exists. A gRPC
	// server with the default policy, such as the sidecar, ends connections that ping more
	// often than every 5 minutes.
	pingInterval = 6 * time.Minute
	pingTimeout  = 20 * time.Second
)

// Config names the service and the target.
type Config struct {
	// Address is host:port of the service. The host is also the name that its
	// certificate must carry.
	Address string
	// CACert is the PEM bundle that signs the certificate of the service.
	CACert []byte
	// TokenPath is the file that holds the security token.
	TokenPath string
	// Namespace and VolumeSnapshot name the target.
	Namespace      string
	VolumeSnapshot string
	// MaxResults is how many blocks to ask for in one message; 0 is
	// DefaultMaxResults.
	MaxResults int32
}

// Source streams the block metadata of one VolumeSnapshot. It is safe for
// concurrent use.
type Source struct {
	config      Config
	credentials credentials.TransportCredentials
}

var _ cbt.Source = (*Source)(nil)

// New checks the configuration. It does not connect.
func New(c Config) (*Source, error) {
	switch {
	case c.Address == "":
		return nil, errors.New("configure snapshot metadata: address is missing")
	case c.TokenPath == "":
		return nil, errors.New("configure snapshot metadata: token path is missing")
	case c.Namespace == "" || c.VolumeSnapshot == "":
		return nil, errors.New("configure snapshot metadata: namespace or name of the VolumeSnapshot is missing")
	case c.MaxResults < 0:
		return nil, fmt.Errorf("configure snapshot metadata: maximum of results is %d, want 0 or more", c.MaxResults)
	}
	if c.MaxResults == 0 {
		c.MaxResults = DefaultMaxResults
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(c.CACert) {
		return nil, fmt.Errorf("configure snapshot metadata: no certificate in the CA bundle of %s (%d bytes)", c.Address, len(c.CACert))
	}
	return &Source{
		config: c,
		// The server name is left out: it is the host of the address.
		credentials: credentials.NewTLS(&tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}),
	}, nil
}

// Allocated streams the blocks of the target that hold data.
func (s *Source) Allocated(ctx context.Context, from int64, record func(cbt.Batch) error) error {
	return s.call(ctx, "get allocated blocks", func(ctx context.Context, client api.SnapshotMetadataClient, token string) error {
		stream, err := client.GetMetadataAllocated(ctx, &api.GetMetadataAllocatedRequest{
			SecurityToken:  token,
			Namespace:      s.config.Namespace,
			SnapshotName:   s.config.VolumeSnapshot,
			StartingOffset: from,
			MaxResults:     s.config.MaxResults,
		})
		if err != nil {
			return err
		}
		return receive(stream.Recv, record)
	})
}

// Changed streams the blocks that differ between base, a CSI snapshot handle,
// and the target.
func (s *Source) Changed(ctx context.Context, base cbt.ChangeID, from int64, record func(cbt.Batch) error) error {
	if base == "" {
		return errors.New("get changed blocks: base is missing")
	}
	return s.call(ctx, "get changed blocks", func(ctx context.Context, client api.SnapshotMetadataClient, token string) error {
		stream, err := client.GetMetadataDelta(ctx, &api.GetMetadataDeltaRequest{
			SecurityToken:      token,
			Namespace:          s.config.Namespace,
			BaseSnapshotId:     string(base),
			TargetSnapshotName: s.config.VolumeSnapshot,
			StartingOffset:     from,
			MaxResults:         s.config.MaxResults,
		})
		if err != nil {
			return err
		}
		return receive(stream.Recv, record)
	})
}

// call runs one streaming call over a connection of its own.
func (s *Source) call(ctx context.Context, what string, run func(context.Context, api.SnapshotMetadataClient, string) error) error {
	token, err := s.token()
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	conn, err := s.dial()
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	defer func() { _ = conn.Close() }() // fails only when closed before

	// Ends the stream when run returns before its end.
	streamCtx, cancel := context.WithCancel(ctx)
	defer cancel()

	err = run(streamCtx, api.NewSnapshotMetadataClient(conn), token)
	var stopped *recordError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &stopped):
		return stopped.err
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w", what, ctx.Err())
	}
	return fmt.Errorf("%s from %s: %w", what, s.config.Address, classify(err))
}

func (s *Source) token() (string, error) {
	b, err := os.ReadFile(s.config.TokenPath)
	if err != nil {
		return "", fmt.Errorf("read security token: %w", err)
	}
	token := strings.TrimSpace(string(b))
	if token == "" {
		return "", fmt.Errorf("read security token: %s is empty", s.config.TokenPath)
	}
	return token, nil
}

func (s *Source) dial() (*grpc.ClientConn, error) {
	dialer := &net.Dialer{KeepAlive: tcpKeepAlive}
	conn, err := grpc.NewClient(s.config.Address,
		grpc.WithTransportCredentials(s.credentials),
		// A dialer of our own also ignores the proxies of the environment: they do not belong
		// between two pods.
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", address)
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingInterval, Timeout: pingTimeout}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessageBytes)),
	)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", s.config.Address, err)
	}
	return conn, nil
}

// message is what the responses of both calls share.
type message interface {
	GetBlockMetadataType() api.BlockMetadataType
	GetVolumeCapacityBytes() int64
	GetBlockMetadata() []*api.BlockMetadata
}

// recordError passes an error of the caller's record through classify.
type recordError struct{ err error }

func (e *recordError) Error() string { return e.err.Error() }

// receive hands each message of a stream to record, until the stream ends by itself.
func receive[M message](next func() (M, error), record func(cbt.Batch) error) error {
	for {
		m, err := next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		b, err := batch(m)
		if err != nil {
			return err
		}
		if err := record(b); err != nil {
			return &recordError{err}
		}
	}
}

func batch(m message) (cbt.Batch, error) {
	b := cbt.Batch{Capacity: m.GetVolumeCapacityBytes()}
	switch t := m.GetBlockMetadataType(); t {
	case api.BlockMetadataType_FIXED_LENGTH:
		b.Fixed = true
	case api.BlockMetadataType_VARIABLE_LENGTH:
	default:
		return cbt.Batch{}, fmt.Errorf("block metadata type is %s, want FIXED_LENGTH or VARIABLE_LENGTH", t)
	}
	b.Blocks = make([]block.Extent, len(m.GetBlockMetadata()))
	for i, e := range m.GetBlockMetadata() {
		b.Blocks[i] = block.Extent{Offset: e.GetByteOffset(), Length: e.GetSizeBytes()}
	}
	return b, nil
}

// interruptions are the codes of streams that may be resumed; see the package documentation.
var interruptions = []codes.Code{codes.Unavailable, codes.Aborted, codes.Internal, codes.Canceled, codes.DeadlineExceeded}

// badCertificate is how gRPC begins the text of a TLS handshake that failed. It does not
// succeed later: the CA is in the SnapshotMetadataService that was read.
const badCertificate = "authentication handshake failed: tls: failed to verify certificate"

// classify wraps the sentinel error for a gRPC status.
func classify(err error) error {
	switch code := status.Code(err); {
	case strings.Contains(status.Convert(err).Message(), badCertificate):
		return err
	case slices.Contains(interruptions, code):
		return fmt.Errorf("%w: %w", cbt.ErrInterrupted, err)
	case code == codes.Unimplemented:
		return fmt.Errorf("%w: %w", cbt.ErrUnavailable, err)
	default:
		return err
	}
}
