package main

import (
	"context"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/gomega"
	"google.golang.org/grpc"
)

// TestSanity runs the suite that every CSI driver is expected to pass, for both
// access types in one go: Ginkgo runs once in a process.
func TestSanity(t *testing.T) {
	for _, accessType := range []string{"mount", "block"} {
		socket := startDriver(t).socket
		config := sanity.NewTestConfig()
		config.Address = "passthrough:///csidriver"
		config.DialOptions = append(config.DialOptions, grpc.WithContextDialer(dialSlowly(socket)))
		config.TargetPath = filepath.Join(filepath.Dir(socket), "target")
		config.StagingPath = filepath.Join(filepath.Dir(socket), "staging")
		config.TestVolumeAccessType = accessType
		config.TestVolumeSize = 1 << 30
		config.TestVolumeExpandSize = 2 << 30
		ginkgo.Describe(accessType, func() {
			t.Cleanup(sanity.GinkgoTest(&config).Finalize)
		})
	}
	gomega.RegisterFailHandler(ginkgo.Fail)
	ginkgo.RunSpecs(t, "CSI sanity")
}

// dialSlowly works around a race of the suite. If the connection is ready before the suite
// first looks, the suite waits a minute for a change that does not come.
func dialSlowly(socket string) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, _ string) (net.Conn, error) {
		time.Sleep(100 * time.Millisecond)
		var dialer net.Dialer
		return dialer.DialContext(ctx, "unix", socket)
	}
}
