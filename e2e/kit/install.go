package kit

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Install installs Blockmover as a user does: the plugin with `velero plugin add`, the
// manager with kustomize. It is idempotent.
func (k *Kit) Install(ctx context.Context) error {
	plugins, err := k.Velero(ctx, "plugin", "get")
	if err != nil {
		return err
	}
	if !strings.Contains(plugins, pluginAction) {
		if _, err := k.Velero(ctx, "plugin", "add", k.PluginImage, "--confirm"); err != nil {
			return err
		}
	}
	if err := k.InstallMover(ctx); err != nil {
		return err
	}
	return k.waitForPlugin(ctx, pluginAction)
}

// pluginAction is an action of our plugin.
const pluginAction = "blockmover.io/pvc-backup"

// AddPlugin installs another plugin, and waits until Velero lists one of its actions.
func (k *Kit) AddPlugin(ctx context.Context, image, action string) error {
	if _, err := k.Velero(ctx, "plugin", "add", image, "--confirm"); err != nil {
		return err
	}
	return k.waitForPlugin(ctx, action)
}

// RemovePlugin removes a plugin, and waits until only the server without it runs.
func (k *Kit) RemovePlugin(ctx context.Context, image string) error {
	if _, err := k.Velero(ctx, "plugin", "remove", image); err != nil {
		return err
	}
	return k.waitForPlugin(ctx, pluginAction)
}

// waitForServer waits until only the newest of Velero's servers runs. Two at once would both take
// a backup, and the old one has not the same plugins.
func (k *Kit) waitForServer(ctx context.Context) error {
	if _, err := k.Kubectl(ctx, "-n", k.VeleroNamespace, "rollout", "status", "deployment/velero", "--timeout=120s"); err != nil {
		return err
	}
	return k.Wait(ctx, "the server from before to be gone", time.Minute, func(ctx context.Context) (bool, string, error) {
		servers, err := k.List(ctx, "-n", k.VeleroNamespace, "pods", "-l", "deploy=velero")
		return len(servers) == 1, fmt.Sprint(servers), err
	})
}

func (k *Kit) waitForPlugin(ctx context.Context, action string) error {
	if err := k.waitForServer(ctx); err != nil {
		return err
	}
	return k.Wait(ctx, "plugin to be listed", time.Minute, func(ctx context.Context) (bool, string, error) {
		// The command fails while the server restarts.
		plugins, err := k.Velero(ctx, "plugin", "get")
		return strings.Contains(plugins, action), fmt.Sprint(plugins, err), nil
	})
}

// InstallMover applies the kustomize base with the image under test, and waits for the
// manager.
func (k *Kit) InstallMover(ctx context.Context) error {
	if err := k.withOverlay(func(dir string) error {
		_, err := k.Kubectl(ctx, "apply", "-k", dir)
		return err
	}); err != nil {
		return err
	}
	return k.waitForMover(ctx)
}

// Uninstall removes what Install has installed, and waits until it is gone.
func (k *Kit) Uninstall(ctx context.Context) error {
	if err := k.withOverlay(func(dir string) error {
		_, err := k.Kubectl(ctx, "delete", "-k", dir, "--ignore-not-found", "--timeout=60s")
		return err
	}); err != nil {
		return err
	}
	if _, err := k.Velero(ctx, "plugin", "remove", k.PluginImage); err != nil {
		return err
	}
	return k.waitForServer(ctx)
}

// Manifests are all objects of the kustomize base and the components that are installed.
func (k *Kit) Manifests(ctx context.Context) (manifests string, err error) {
	err = k.withOverlay(func(dir string) error {
		manifests, err = k.Kubectl(ctx, "kustomize", dir, "--load-restrictor=LoadRestrictionsNone")
		return err
	})
	return manifests, err
}

// withOverlay works with a kustomization of the base that has the image under test.
func (k *Kit) withOverlay(work func(dir string) error) error {
	dir, err := os.MkdirTemp("", "blockmover-deploy-")
	if err != nil {
		return fmt.Errorf("create overlay directory: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	base, err := filepath.Abs(k.DeployDir)
	if err != nil {
		return fmt.Errorf("resolve deploy directory: %w", err)
	}
	relative, err := filepath.Rel(dir, base)
	if err != nil {
		return fmt.Errorf("resolve deploy directory: %w", err)
	}
	var components []string
	for _, c := range k.Components {
		components = append(components, filepath.Join(relative, c))
	}
	name, tag, _ := strings.Cut(k.MoverImage, ":")
	overlay := fmt.Sprintf(`apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
namespace: %s
resources: [%s]
components: [%s]
images: [{name: blockmover, newName: %s, newTag: %s}]
%s`, k.VeleroNamespace, relative, strings.Join(components, ", "), name, tag, k.Patches)
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(overlay), 0o600); err != nil {
		return fmt.Errorf("write overlay: %w", err)
	}
	return work(dir)
}

// Helm runs Helm on the release of the chart, in Velero's namespace. values is a document for --values -.
func (k *Kit) Helm(ctx context.Context, values, command string, args ...string) (string, error) {
	args = append([]string{command, "blockmover", "--namespace", k.VeleroNamespace}, args...)
	if values != "" {
		args = append(args, "--values", "-")
	}
	return k.Run(ctx, values, "helm", args...)
}

// RestartMover replaces the manager by a new one, and waits for it.
func (k *Kit) RestartMover(ctx context.Context) error {
	if _, err := k.Kubectl(ctx, "-n", k.VeleroNamespace, "rollout", "restart", "deployment/blockmover"); err != nil {
		return err
	}
	return k.waitForMover(ctx)
}

func (k *Kit) waitForMover(ctx context.Context) error {
	_, err := k.Kubectl(ctx, "-n", k.VeleroNamespace, "rollout", "status", "deployment/blockmover", "--timeout=120s")
	return err
}
