// Package kubevirt tests Blockmover with real KubeVirt and running VMs, as their administrator uses
// both. `make kubevirt-e2e` runs it, on a cluster of its own.
package kubevirt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/blockmover/blockmover/e2e/kit"
)

func TestMain(m *testing.M) {
	if os.Getenv("KUBECONFIG") == "" || os.Getenv("BLOCKMOVER_KUBEVIRT") == "" {
		fmt.Fprintln(os.Stderr, "kubevirt: KUBECONFIG or BLOCKMOVER_KUBEVIRT is not set: run the tests with `make kubevirt-e2e`")
		os.Exit(2)
	}
	start := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	k := newKit(func(format string, args ...any) { fmt.Printf(format+"\n", args...) })
	if err := errors.Join(install(ctx, k), k.Install(ctx)); err != nil {
		fmt.Fprintf(os.Stderr, "kubevirt: install: %v\n", err)
		os.Exit(1)
	}
	fmt.Printf("KubeVirt and Blockmover were installed in %.0f s\n", time.Since(start).Seconds())
	code := m.Run()
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

// install installs KubeVirt from what build.sh has made.
func install(ctx context.Context, k *kit.Kit) error {
	directory := os.Getenv("BLOCKMOVER_KUBEVIRT")
	for _, image := range []string{"components.tar", "guest.tar"} {
		if _, err := k.Run(ctx, "", "ctr", "images", "import", filepath.Join(directory, "images", image)); err != nil {
			return err
		}
	}
	if _, err := k.Kubectl(ctx, "label", "node", "--all", "--overwrite", "node-role.kubernetes.io/control-plane="); err != nil {
		return err
	}
	if _, err := k.Kubectl(ctx, "apply", "--server-side", "-f", filepath.Join(directory, "operator.yaml")); err != nil {
		return err
	}
	if _, err := k.Kubectl(ctx, "wait", "crd/kubevirts.kubevirt.io", "--for=condition=Established", "--timeout=60s"); err != nil {
		return err
	}
	settings, err := os.ReadFile(filepath.Join(os.Getenv("BLOCKMOVER_E2E"), "kubevirt", "kubevirt.yaml"))
	if err != nil {
		return err
	}
	if err := k.Apply(ctx, string(settings)); err != nil {
		return err
	}
	return k.Wait(ctx, "KubeVirt to be deployed", 5*time.Minute, func(ctx context.Context) (bool, string, error) {
		phase, err := k.Kubectl(ctx, "-n", "kubevirt", "get", "kubevirt", "kubevirt", "-o", "jsonpath={.status.phase}")
		return strings.TrimSpace(phase) == "Deployed", phase, err
	})
}
