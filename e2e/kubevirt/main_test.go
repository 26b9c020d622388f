// Package kubevirt tests Blockmover with running VMs, as an administrator uses it. `make kubevirt-e2e`
// runs it with real KubeVirt, `make e2e` with what stands in for it, each on a cluster of its own.
package kubevirt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/blockmover/blockmover/e2e/kit"
)

func TestMain(m *testing.M) {
	if os.Getenv("KUBECONFIG") == "" {
		fmt.Fprintln(os.Stderr, "kubevirt: KUBECONFIG is not set: run the tests with `make kubevirt-e2e` or `make e2e`")
		os.Exit(2)
	}
	start := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	k := newKit(func(format string, args ...any) { fmt.Printf(format+"\n", args...) })
	remove, err := theWorld.install(ctx, k)
	if err := errors.Join(err, k.Install(ctx)); err != nil {
		fmt.Fprintf(os.Stderr, "kubevirt: install: %v\n", err)
		os.Exit(1)
	}
	fmt.Printf("KubeVirt and Blockmover were installed in %.0f s\n", time.Since(start).Seconds())
	code := m.Run()
	if err := remove(); err != nil {
		fmt.Fprintf(os.Stderr, "kubevirt: remove: %v\n", err)
		code = 1
	}
	if err := kit.SaveAudit(); err != nil {
		fmt.Fprintf(os.Stderr, "kubevirt: save audit log: %v\n", err)
		code = 1
	}
	os.Exit(code)
}

func newKit(logf func(format string, args ...any)) *kit.Kit {
	k := kit.FromEnv(logf)
	k.Components = []string{"kubevirt"}
	return k
}
