package cluster

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/blockmover/blockmover/e2e/images"
)

// VeleroNamespace is where Velero is installed.
const VeleroNamespace = "velero"

// LoadImages imports docker-archives into the running cluster. It works inside and outside of
// its namespaces.
func (c *Cluster) LoadImages(ctx context.Context, archives ...string) error {
	return c.importImages(ctx, archives...)
}

// InstallVelero installs Velero with its own CLI, as a user would, with the object storage of
// the cluster, and waits until it works. It runs inside the namespaces (`cluster exec`).
func (c *Cluster) InstallVelero(ctx context.Context, report func(string, ...any)) error {
	for _, name := range []string{images.VeleroName, images.AWSPluginName} {
		if err := c.importImages(ctx, c.imageArchive(name)); err != nil {
			return err
		}
	}
	report("images %s and %s loaded", images.VeleroName, images.AWSPluginName)
	args := []string{
		"install", "--namespace", VeleroNamespace, "--provider", "aws", "--bucket", S3Bucket,
		"--secret-file", c.path("s3-credentials"),
		"--image", images.VeleroName, "--plugins", images.AWSPluginName,
		"--backup-location-config", "region=" + S3Region + ",s3ForcePathStyle=true,s3Url=" + S3URL,
		"--use-volume-snapshots=false", "--features=EnableCSI",
		"--use-node-agent", "--privileged-node-agent", "--kubelet-root-dir", c.KubeletRoot(),
		"--velero-pod-cpu-request=10m", "--velero-pod-mem-request=64Mi",
		"--node-agent-pod-cpu-request=10m", "--node-agent-pod-mem-request=64Mi",
		"--velero-pod-cpu-limit=0", "--velero-pod-mem-limit=0",
		"--node-agent-pod-cpu-limit=0", "--node-agent-pod-mem-limit=0",
	}
	if _, err := c.tool(ctx, time.Minute, "velero", args...); err != nil {
		return err
	}
	// Velero's default is to poll the operations of data movers every 10 s. That is too slow
	// for tests with dozens of them.
	patch := `[{"op":"add","path":"/spec/template/spec/containers/0/args/-","value":"--item-operation-sync-frequency=2s"},` +
		`{"op":"add","path":"/spec/template/spec/containers/0/args/-","value":"--resource-timeout=2m"}]`
	kubectl := func(limit time.Duration, args ...string) (string, error) {
		return c.tool(ctx, limit, "kubectl", append([]string{"--namespace", VeleroNamespace}, args...)...)
	}
	if _, err := kubectl(30*time.Second, "patch", "deployment/velero", "--type=json", "--patch", patch); err != nil {
		return err
	}
	report("velero install done")
	for _, workload := range []string{"deployment/velero", "daemonset/node-agent"} {
		if _, err := kubectl(150*time.Second, "rollout", "status", workload, "--timeout=140s"); err != nil {
			state, _ := kubectl(10*time.Second, "get", "pods,events", "-o", "wide")
			return fmt.Errorf("%w\n%s", err, state)
		}
		report("%s is running", workload)
	}
	_, err := kubectl(70*time.Second, "wait", "backupstoragelocation/default", "--for=jsonpath={.status.phase}=Available", "--timeout=60s")
	if err != nil {
		return fmt.Errorf("%w; see kubectl -n velero logs deploy/velero, and %s", err, c.log("versitygw"))
	}
	report("backup storage location is Available")
	return nil
}

// tool runs a binary of the cache against the cluster and returns its output.
func (c *Cluster) tool(ctx context.Context, limit time.Duration, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.bin(name), args...)
	cmd.Env = c.Environ(os.Environ())
	cmd.WaitDelay = 5 * time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(out.String()))
	}
	return out.String(), nil
}
