// Package kit drives a cluster as its administrator does: with kubectl, velero and kopia on
// the command line. The scenarios and the demo use it. So they run on the harness's cluster
// and on any other that KUBECONFIG names.
//
// The package does not know how the cluster was made. Every wait is bounded, and its error
// says what it waited for and what it saw last.
package kit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// Kit is one cluster with Velero, as seen from the command line. Its fields are
// read from the environment by FromEnv; the defaults are the harness's.
type Kit struct {
	// VeleroNamespace is where Velero and Blockmover run.
	VeleroNamespace string
	// Components are those of DeployDir that are installed too.
	Components []string
	// Patches are those of the kustomization, as YAML.
	Patches string
	// StorageClass, OtherStorageClass (of another driver) and WaitStorageClass
	// (WaitForFirstConsumer) are those of the test volumes.
	StorageClass, OtherStorageClass, WaitStorageClass string
	// ToolsImage has sh, dd, sha256sum, find and e2fsck.
	ToolsImage string
	// PluginImage and MoverImage are the two images under test.
	PluginImage, MoverImage string
	// DeployDir is the kustomize base.
	DeployDir string
	// Log receives one line per step; never nil.
	Log func(format string, args ...any)
}

// FromEnv describes the cluster that the E2E_ variables name.
func FromEnv(log func(format string, args ...any)) *Kit {
	return &Kit{
		VeleroNamespace:   env("E2E_VELERO_NAMESPACE", "velero"),
		StorageClass:      env("E2E_STORAGE_CLASS", "block-test"),
		OtherStorageClass: env("E2E_OTHER_STORAGE_CLASS", "alt-test"),
		WaitStorageClass:  env("E2E_WAIT_STORAGE_CLASS", "block-test-wffc"),
		ToolsImage:        env("E2E_TOOLS_IMAGE", "busybox:e2e"),
		PluginImage:       env("E2E_PLUGIN_IMAGE", "blockmover-plugin:dev"),
		MoverImage:        env("E2E_MOVER_IMAGE", "blockmover-mover:dev"),
		DeployDir:         env("E2E_DEPLOY_DIR", "../../deploy"),
		Log:               log,
	}
}

func env(name, fallback string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return fallback
}

// Run executes a command and returns its standard output. The error carries
// the command line and standard error.
func (k *Kit) Run(ctx context.Context, stdin string, name string, args ...string) (string, error) {
	return k.run(ctx, nil, stdin, name, args...)
}

func (k *Kit) run(ctx context.Context, environ []string, stdin, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), environ...)
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("run %s %s: %w: %s", name, strings.Join(args, " "), err, tail(stderr.String()))
	}
	return stdout.String(), nil
}

// tail keeps the end of a long output, which usually has the cause.
func tail(s string) string {
	const limit = 2000
	s = strings.TrimSpace(s)
	if len(s) > limit {
		return "…" + s[len(s)-limit:]
	}
	return s
}

// Kubectl runs kubectl.
func (k *Kit) Kubectl(ctx context.Context, args ...string) (string, error) {
	return k.Run(ctx, "", "kubectl", args...)
}

// Velero runs the velero command line in Velero's namespace.
func (k *Kit) Velero(ctx context.Context, args ...string) (string, error) {
	return k.Run(ctx, "", "velero", append([]string{"--namespace", k.VeleroNamespace}, args...)...)
}

// Apply applies a manifest.
func (k *Kit) Apply(ctx context.Context, manifest string) error {
	_, err := k.Run(ctx, manifest, "kubectl", "apply", "-f", "-")
	return err
}

// Get decodes `kubectl get ARGS -o json` into a value.
func (k *Kit) Get(ctx context.Context, into any, args ...string) error {
	out, err := k.Kubectl(ctx, append(append([]string{"get"}, args...), "-o", "json")...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), into); err != nil {
		return fmt.Errorf("decode kubectl get %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// List returns the objects that `kubectl get ARGS` finds. If the cluster does not serve the
// kind, the list is empty.
func (k *Kit) List(ctx context.Context, args ...string) ([]Object, error) {
	var list struct {
		Items []Object `json:"items"`
	}
	err := k.Get(ctx, &list, args...)
	if err != nil && strings.Contains(err.Error(), "the server doesn't have a resource type") {
		return nil, nil
	}
	return list.Items, err
}

// ErrTimeout is wrapped by the error of a wait that ran out of time.
var ErrTimeout = errors.New("timed out")

// Wait polls until check reports done. The error has seen, which is what check saw last. An
// error of check ends the wait at once.
func (k *Kit) Wait(ctx context.Context, what string, timeout time.Duration, check func(context.Context) (done bool, seen string, err error)) error {
	deadline := time.Now().Add(timeout)
	for {
		start := time.Now()
		done, seen, err := check(ctx)
		switch {
		case err != nil:
			return fmt.Errorf("wait for %s: %w", what, err)
		case done:
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("wait for %s: %w after %s, last seen: %s", what, ErrTimeout, timeout, seen)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", what, ctx.Err())
		case <-time.After(pause(time.Since(start))):
		}
	}
}

// pause returns the time between two checks of a Wait: longer after a slow check, so that
// what is waited for has most of a busy machine.
func pause(check time.Duration) time.Duration {
	const least, most = 300 * time.Millisecond, 5 * time.Second
	return min(max(least, 2*check), most)
}
