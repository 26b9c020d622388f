package snapshotmetadata

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/kubernetes-csi/external-snapshot-metadata/pkg/api"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/cbt"
	"github.com/blockmover/blockmover/internal/cbt/cbttest"
)

const mib = 1 << 20

// service is a SnapshotMetadata service over TLS on loopback. It serves blocks
// in messages of maxResults, from the starting offset, and fails as told.
type service struct {
	api.UnimplementedSnapshotMetadataServer

	address  string
	ca       []byte
	server   *grpc.Server
	open     atomic.Int32 // connections
	capacity int64
	blocks   []block.Extent                  // allocated, and changed where changed is nil
	changed  map[cbt.ChangeID][]block.Extent // by base
	kind     api.BlockMetadataType
	failFrom int   // messages of each call before it fails
	failWith error // the failure
	hold     bool  // no failure, but silence until the client is gone

	mu     sync.Mutex
	deltas []*api.GetMetadataDeltaRequest
	allocs []*api.GetMetadataAllocatedRequest
}

func (s *service) GetMetadataAllocated(r *api.GetMetadataAllocatedRequest, stream grpc.ServerStreamingServer[api.GetMetadataAllocatedResponse]) error {
	s.mu.Lock()
	s.allocs = append(s.allocs, r)
	s.mu.Unlock()
	return s.serve(stream.Context(), s.blocks, r.GetStartingOffset(), int(r.GetMaxResults()), func(blocks []*api.BlockMetadata) error {
		return stream.Send(&api.GetMetadataAllocatedResponse{
			BlockMetadataType: s.kind, VolumeCapacityBytes: s.capacity, BlockMetadata: blocks,
		})
	})
}

func (s *service) GetMetadataDelta(r *api.GetMetadataDeltaRequest, stream grpc.ServerStreamingServer[api.GetMetadataDeltaResponse]) error {
	s.mu.Lock()
	s.deltas = append(s.deltas, r)
	s.mu.Unlock()
	changed := s.blocks
	if s.changed != nil {
		var ok bool
		if changed, ok = s.changed[cbt.ChangeID(r.GetBaseSnapshotId())]; !ok {
			return status.Error(codes.InvalidArgument, "base is not a snapshot of the volume")
		}
	}
	return s.serve(stream.Context(), changed, r.GetStartingOffset(), int(r.GetMaxResults()), func(blocks []*api.BlockMetadata) error {
		return stream.Send(&api.GetMetadataDeltaResponse{
			BlockMetadataType: s.kind, VolumeCapacityBytes: s.capacity, BlockMetadata: blocks,
		})
	})
}

func (s *service) serve(ctx context.Context, blocks []block.Extent, from int64, maxResults int, send func([]*api.BlockMetadata) error) error {
	var left []*api.BlockMetadata
	for _, b := range blocks {
		if b.End() > from {
			left = append(left, &api.BlockMetadata{ByteOffset: b.Offset, SizeBytes: b.Length})
		}
	}
	for sent := 0; ; sent++ {
		if sent == s.failFrom && s.hold {
			<-ctx.Done()
			return ctx.Err()
		}
		if sent == s.failFrom && s.failWith != nil {
			return s.failWith
		}
		if len(left) == 0 {
			return nil
		}
		n := min(maxResults, len(left))
		if err := send(left[:n]); err != nil {
			return err
		}
		left = left[n:]
	}
}

// start runs the service until the test ends.
func start(t *testing.T, s *service) {
	t.Helper()
	ca, cert := certificates(t)
	s.ca = ca
	if s.kind == api.BlockMetadataType_UNKNOWN {
		s.kind = api.BlockMetadataType_VARIABLE_LENGTH
	}
	if s.capacity == 0 {
		s.capacity = 64 * mib
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.address = listener.Addr().String()
	s.server = grpc.NewServer(
		grpc.Creds(credentials.NewServerTLSFromCert(&cert)),
		grpc.StatsHandler(connCounter{&s.open}),
	)
	api.RegisterSnapshotMetadataServer(s.server, s)
	go func() { _ = s.server.Serve(listener) }()
	t.Cleanup(s.server.Stop)
}

type connCounter struct{ open *atomic.Int32 }

func (connCounter) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context   { return ctx }
func (connCounter) HandleRPC(context.Context, stats.RPCStats)                         {}
func (connCounter) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

func (c connCounter) HandleConn(_ context.Context, s stats.ConnStats) {
	switch s.(type) {
	case *stats.ConnBegin:
		c.open.Add(1)
	case *stats.ConnEnd:
		c.open.Add(-1)
	}
}

// certificates makes a CA, and a certificate of it for 127.0.0.1.
func certificates(t *testing.T) (caPEM []byte, leaf tls.Certificate) {
	t.Helper()
	issue := func(template, parent *x509.Certificate, signer *ecdsa.PrivateKey) ([]byte, *ecdsa.PrivateKey) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if signer == nil {
			signer = key
		}
		der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
		if err != nil {
			t.Fatal(err)
		}
		return der, key
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caDER, caKey := issue(ca, ca, nil)
	leafDER, leafKey := issue(&x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "snapshot metadata"},
		NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, ca, caKey)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER}),
		tls.Certificate{Certificate: [][]byte{leafDER}, PrivateKey: leafKey}
}

func config(t *testing.T, s *service) Config {
	t.Helper()
	token := filepath.Join(t.TempDir(), "token")
	writeFile(t, token, "token-1\n")
	return Config{
		Address: s.address, CACert: s.ca, TokenPath: token,
		Namespace: "velero", VolumeSnapshot: "target", MaxResults: 2,
	}
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func newSource(t *testing.T, c Config) *Source {
	t.Helper()
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func context10s(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func isolatedMiB(n int) []block.Extent {
	blocks := make([]block.Extent, n)
	for i := range blocks {
		blocks[i] = block.Extent{Offset: int64(2*i) * mib, Length: mib}
	}
	return blocks
}

func TestContract(t *testing.T) {
	cbttest.Contract(t, func(t *testing.T, v cbttest.Volume) cbt.Source {
		t.Helper()
		svc := &service{capacity: v.Capacity, blocks: v.Allocated, changed: v.Changed}
		if v.Fixed {
			svc.kind = api.BlockMetadataType_FIXED_LENGTH
		}
		start(t, svc)
		c := config(t, svc)
		c.MaxResults = int32(v.PerMessage) //nolint:gosec // it is small
		return newSource(t, c)
	})
}

func TestRequestsAndBatches(t *testing.T) {
	svc := &service{blocks: isolatedMiB(3), kind: api.BlockMetadataType_FIXED_LENGTH}
	start(t, svc)
	c := config(t, svc)
	source := newSource(t, c)
	ctx := context10s(t)

	collect := func(batches *[]cbt.Batch) func(cbt.Batch) error {
		return func(b cbt.Batch) error { *batches = append(*batches, b); return nil }
	}
	want := []cbt.Batch{
		{Fixed: true, Capacity: 64 * mib, Blocks: svc.blocks[:2]},
		{Fixed: true, Capacity: 64 * mib, Blocks: svc.blocks[2:]},
	}

	var allocated, changed []cbt.Batch
	if err := source.Allocated(ctx, 0, collect(&allocated)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, allocated); diff != "" {
		t.Errorf("allocated (-want +got):\n%s", diff)
	}
	writeFile(t, c.TokenPath, "token-2")
	if err := source.Changed(ctx, "base-handle", 3*mib, collect(&changed)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]cbt.Batch{{Fixed: true, Capacity: 64 * mib, Blocks: svc.blocks[2:]}}, changed); diff != "" {
		t.Errorf("changed (-want +got):\n%s", diff)
	}

	a, d := svc.allocs[0], svc.deltas[0]
	got := []any{
		a.SecurityToken, a.Namespace, a.SnapshotName, a.StartingOffset, a.MaxResults,
		d.SecurityToken, d.Namespace, d.TargetSnapshotName, d.BaseSnapshotId, d.StartingOffset, d.MaxResults,
	}
	if diff := cmp.Diff([]any{
		"token-1", "velero", "target", int64(0), int32(2),
		"token-2", "velero", "target", "base-handle", int64(3 * mib), int32(2),
	}, got); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
	waitClosed(t, svc)
}

func waitClosed(t *testing.T, svc *service) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); svc.open.Load() != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d connections are still open", svc.open.Load())
		}
	}
}

// A stream that breaks after every message is read to its end by resuming after the last
// block.
func TestResumeAfterBreak(t *testing.T) {
	svc := &service{blocks: isolatedMiB(7), failFrom: 1, failWith: status.Error(codes.Unavailable, "sidecar restarts")}
	start(t, svc)
	source := newSource(t, config(t, svc))
	ctx := context10s(t)

	var got []block.Extent
	from, breaks := int64(0), 0
	for len(got) < len(svc.blocks) {
		err := source.Changed(ctx, "base", from, func(b cbt.Batch) error {
			got = append(got, b.Blocks...)
			from = got[len(got)-1].End()
			return nil
		})
		if !errors.Is(err, cbt.ErrInterrupted) {
			t.Fatalf("error is %v, want one that wraps ErrInterrupted", err)
		}
		breaks++
	}
	if diff := cmp.Diff(svc.blocks, got); diff != "" {
		t.Errorf("blocks (-want +got):\n%s", diff)
	}
	if breaks != 4 {
		t.Errorf("%d breaks, want 4: 7 blocks in messages of 2", breaks)
	}
}

func TestConnectionLost(t *testing.T) {
	svc := &service{blocks: isolatedMiB(7), failFrom: 1, hold: true}
	start(t, svc)
	source := newSource(t, config(t, svc))
	var batches int
	err := source.Allocated(context10s(t), 0, func(cbt.Batch) error {
		batches++
		go svc.server.Stop()
		return nil
	})
	if !errors.Is(err, cbt.ErrInterrupted) || batches != 1 {
		t.Fatalf("after %d batches the error is %v, want one that wraps ErrInterrupted after 1", batches, err)
	}
}

func TestErrorClasses(t *testing.T) {
	for code, want := range map[codes.Code]error{
		codes.Unavailable:       cbt.ErrInterrupted,
		codes.Aborted:           cbt.ErrInterrupted,
		codes.Internal:          cbt.ErrInterrupted,
		codes.Canceled:          cbt.ErrInterrupted,
		codes.DeadlineExceeded:  cbt.ErrInterrupted,
		codes.Unimplemented:     cbt.ErrUnavailable,
		codes.InvalidArgument:   nil,
		codes.NotFound:          nil,
		codes.PermissionDenied:  nil,
		codes.Unauthenticated:   nil,
		codes.ResourceExhausted: nil,
		codes.OutOfRange:        nil,
	} {
		t.Run(code.String(), func(t *testing.T) {
			svc := &service{failWith: status.Error(code, "what the storage said")}
			start(t, svc)
			err := newSource(t, config(t, svc)).Allocated(context10s(t), 0, func(cbt.Batch) error { return nil })
			if status.Code(err) != code {
				t.Errorf("error %v has code %s, want %s", err, status.Code(err), code)
			}
			for _, sentinel := range []error{cbt.ErrInterrupted, cbt.ErrUnavailable} {
				if got, expected := errors.Is(err, sentinel), errors.Is(want, sentinel); got != expected {
					t.Errorf("error %v wraps %q: %v, want %v", err, sentinel, got, expected)
				}
			}
		})
	}
}

// TestUnknownType: nobody knows what the length of such a block means, so it is no data.
func TestUnknownType(t *testing.T) {
	const noType = 7
	svc := &service{blocks: isolatedMiB(1), kind: noType}
	start(t, svc)
	err := newSource(t, config(t, svc)).Allocated(context10s(t), 0, func(cbt.Batch) error {
		t.Error("a batch of an unknown type")
		return nil
	})
	if err == nil || !strings.Contains(err.Error(), "type is 7, want FIXED_LENGTH or VARIABLE_LENGTH") || errors.Is(err, cbt.ErrInterrupted) {
		t.Fatalf("error is %v, want one that lasts and names the type", err)
	}
}

func TestWrongCA(t *testing.T) {
	svc := &service{blocks: isolatedMiB(1)}
	start(t, svc)
	c := config(t, svc)
	c.CACert, _ = certificates(t)
	err := newSource(t, c).Allocated(context10s(t), 0, func(cbt.Batch) error {
		t.Error("a batch from a service that the CA does not vouch for")
		return nil
	})
	if err == nil || len(svc.allocs) != 0 {
		t.Fatalf("error is %v after %d requests, want an error and no request, which would carry the token", err, len(svc.allocs))
	}
}

func TestWrongServerName(t *testing.T) {
	svc := &service{blocks: isolatedMiB(1)}
	start(t, svc)
	c := config(t, svc)
	_, port, _ := net.SplitHostPort(svc.address)
	c.Address = "localhost:" + port
	if err := newSource(t, c).Allocated(context10s(t), 0, func(cbt.Batch) error { return nil }); err == nil {
		t.Fatal("no error for a certificate of another name")
	}
}

func TestBigMessages(t *testing.T) {
	// 400,000 blocks take about 6 MiB: more than gRPC's own limit of 4 MiB.
	svc := &service{blocks: isolatedMiB(400_000)}
	start(t, svc)
	c := config(t, svc)
	c.MaxResults = 400_000
	source := newSource(t, c)
	var blocks int
	if err := source.Allocated(context10s(t), 0, func(b cbt.Batch) error { blocks += len(b.Blocks); return nil }); err != nil {
		t.Fatal(err)
	}
	if blocks != len(svc.blocks) {
		t.Errorf("%d blocks, want %d", blocks, len(svc.blocks))
	}

	svc.blocks = isolatedMiB(1_500_000)
	c.MaxResults = 1_500_000
	err := newSource(t, c).Allocated(context10s(t), 0, func(cbt.Batch) error { return nil })
	if status.Code(err) != codes.ResourceExhausted || errors.Is(err, cbt.ErrInterrupted) {
		t.Errorf("error is %v, want ResourceExhausted that is not to be resumed", err)
	}
}

func TestUnknownBlockType(t *testing.T) {
	svc := &service{blocks: isolatedMiB(1), kind: 7}
	start(t, svc)
	err := newSource(t, config(t, svc)).Allocated(context10s(t), 0, func(cbt.Batch) error {
		t.Error("a batch of unknown type was recorded")
		return nil
	})
	if err == nil || errors.Is(err, cbt.ErrInterrupted) {
		t.Errorf("error is %v, want a permanent one", err)
	}
	waitClosed(t, svc)
}

func TestRecordErrorIsReturnedAsItIs(t *testing.T) {
	svc := &service{blocks: isolatedMiB(9)}
	start(t, svc)
	want := errors.New("blocks overlap")
	var batches int
	err := newSource(t, config(t, svc)).Allocated(context10s(t), 0, func(cbt.Batch) error { batches++; return want })
	if err != want || batches != 1 { //nolint:errorlint // the contract says: as it is
		t.Errorf("error is %v after %d batches, want exactly %v after 1", err, batches, want)
	}
	waitClosed(t, svc)
}

func TestCanceled(t *testing.T) {
	svc := &service{blocks: isolatedMiB(9), failFrom: 1, hold: true}
	start(t, svc)
	ctx, cancel := context.WithCancel(context10s(t))
	err := newSource(t, config(t, svc)).Allocated(ctx, 0, func(cbt.Batch) error { cancel(); return nil })
	if !errors.Is(err, context.Canceled) || errors.Is(err, cbt.ErrInterrupted) {
		t.Errorf("error is %v, want the context's own", err)
	}
	waitClosed(t, svc)
}

func TestToken(t *testing.T) {
	svc := &service{}
	start(t, svc)
	c := config(t, svc)
	writeFile(t, c.TokenPath, " \n")
	source := newSource(t, c)
	if err := source.Allocated(context10s(t), 0, nil); err == nil {
		t.Error("no error for an empty token")
	}
	if err := os.Remove(c.TokenPath); err != nil {
		t.Fatal(err)
	}
	if err := source.Allocated(context10s(t), 0, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error is %v, want that the token file does not exist", err)
	}
	if len(svc.allocs) != 0 {
		t.Error("a request without a token")
	}
}

func TestNewRefuses(t *testing.T) {
	ca, _ := certificates(t)
	valid := Config{Address: "sidecar:50051", CACert: ca, TokenPath: "/token", Namespace: "velero", VolumeSnapshot: "target"}
	s := newSource(t, valid)
	if s.config.MaxResults != DefaultMaxResults {
		t.Errorf("maximum of results is %d by default, want %d", s.config.MaxResults, DefaultMaxResults)
	}
	for name, spoil := range map[string]func(*Config){
		"no address":          func(c *Config) { c.Address = "" },
		"no token path":       func(c *Config) { c.TokenPath = "" },
		"no namespace":        func(c *Config) { c.Namespace = "" },
		"no VolumeSnapshot":   func(c *Config) { c.VolumeSnapshot = "" },
		"negative maximum":    func(c *Config) { c.MaxResults = -1 },
		"no CA":               func(c *Config) { c.CACert = nil },
		"CA that is not PEM":  func(c *Config) { c.CACert = []byte("not PEM") },
		"PEM that is garbage": func(c *Config) { c.CACert = []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n") },
	} {
		c := valid
		spoil(&c)
		if _, err := New(c); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if err := s.Changed(t.Context(), "", 0, nil); err == nil || errors.Is(err, cbt.ErrInterrupted) {
		t.Errorf("delta without a base: error is %v, want a permanent one", err)
	}
}
