package standin

import (
	"context"
	"errors"
	"fmt"
	"os"

	"k8s.io/client-go/tools/clientcmd"

	"github.com/blockmover/blockmover/e2e/kit"
)

// Install starts a stand-in on the cluster of the harness. Remove ends it.
func Install(ctx context.Context, k *kit.Kit) (*Standin, error) {
	if err := k.Apply(ctx, CRDs); err != nil {
		return nil, err
	}
	if _, err := k.Kubectl(ctx, "wait", "crd", "-l", "standin", "--for=condition=Established", "--timeout=60s"); err != nil {
		return nil, err
	}
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err != nil {
		return nil, fmt.Errorf("read KUBECONFIG: %w", err)
	}
	config.QPS, config.Burst = 100, 200
	directory, err := os.MkdirTemp("", "standin-") // the names of sockets must be short
	if err != nil {
		return nil, fmt.Errorf("make directory for VMs: %w", err)
	}
	s, err := New(config, Options{
		Kubelet: os.Getenv("BLOCKMOVER_KUBELET_ROOT"), Directory: directory, Image: k.ToolsImage, Log: k.Log,
	})
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(directory))
	}
	s.Start() //nolint:contextcheck // until Stop
	return s, nil
}

// Remove stops the controller and all VMs, and removes what they have on the host.
func (s *Standin) Remove() error { return errors.Join(s.Close(), os.RemoveAll(s.Directory)) }
