// Package cluster runs a single-node Kubernetes with CSI, object storage and
// Velero on a bare Linux machine as root, without an image registry or a
// container engine.
//
// # Shape
//
//	cluster up ──▶ init (PID 1 of new mount, network, UTS and PID namespaces; reaps)
//	                └─ supervisor (starts the components in order, writes status.json)
//	                    ├─ etcd, kube-apiserver, kube-controller-manager, kube-scheduler
//	                    ├─ containerd ─ pods,  kubelet
//	                    ├─ versitygw (S3)
//	                    └─ per CSI driver: csidriver, csi-provisioner, csi-snapshotter,
//	                       csi-resizer, csi-snapshot-metadata; one snapshot-controller
//
// Killing PID 1 ends every process. Mounts, addresses and bridges go with the namespaces.
// Outside the namespaces there are only the state directory, the cgroup with the name of the
// cluster, and loop devices. Down removes them. It finds them by name or by a path under the
// state directory, never from memory, so it works after a kill at any moment.
//
// # Invariants
//
//   - Two clusters share nothing but the cache, which running clusters only read.
//   - Every wait has a deadline, and its error names the log to read.
//   - A component that exits is reported, and started again after a second. `status` fails
//     in the meantime. If one exits while the cluster starts, `up` fails.
//
// It does not promise security (the keys of the CA are in the state directory), more than one
// node, Services other than `kubernetes` (there is no kube-proxy), or DNS.
package cluster

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/blockmover/blockmover/e2e/cluster/artifacts"
)

// Addresses inside the cluster's own network namespace: the same for every
// cluster.
const (
	NodeIP      = "10.77.0.1"
	serviceIP   = "10.96.0.1" // of the Service "kubernetes"; the API server listens here
	serviceCIDR = "10.96.0.0/16"
	podCIDR     = "10.244.0.0/24"
	// Server is the API server's address, for pods and for `cluster exec`.
	Server = "https://" + serviceIP + ":443"
)

// The object storage that Velero uses.
const (
	S3URL       = "http://" + NodeIP + ":7070"
	S3Region    = "us-east-1"
	S3Bucket    = "velero"
	S3AccessKey = "blockmover"
	S3SecretKey = "blockmover-secret"
)

// Driver is one instance of the test CSI driver.
type Driver struct {
	Name         string
	metadataPort int // csi-snapshot-metadata's gRPC port on the node
	healthPort   int // and its diagnostics
}

// Drivers are the CSI drivers of every cluster. Their ports are outside the range that the
// kernel gives to connections. The API server has many connections, and one of them could
// have the port first.
var Drivers = []Driver{
	{Name: "block.test.blockmover.io", metadataPort: 5051, healthPort: 5061},
	{Name: "alt.test.blockmover.io", metadataPort: 5052, healthPort: 5062},
}

// Cluster names a cluster and knows where its things are.
type Cluster struct {
	Name  string
	State string // directory of all its state
	Cache string // directory of package artifacts' cache
}

var validName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,30}[a-z0-9])?$`)

// New returns the cluster of that name, running or not.
func New(name, cache string) (*Cluster, error) {
	if !validName.MatchString(name) {
		return nil, fmt.Errorf("cluster name %q: want up to 32 lower-case letters, digits and dashes", name)
	}
	base := os.Getenv("BLOCKMOVER_STATE_DIR")
	if base == "" {
		base = "/var/tmp/blockmover"
	}
	base, err := filepath.Abs(base)
	if err != nil {
		return nil, err
	}
	// A path below it must fit into a socket address (107 bytes).
	const longest = 48
	if len(base) > longest {
		return nil, fmt.Errorf("state directory %s: longer than %d bytes, sockets below it would not fit", base, longest)
	}
	return &Cluster{Name: name, State: filepath.Join(base, name), Cache: cache}, nil
}

func (c *Cluster) path(elem ...string) string {
	return filepath.Join(append([]string{c.State}, elem...)...)
}

// Kubeconfig is the administrator's kubeconfig. Its server can be reached only inside the
// cluster's namespaces.
func (c *Cluster) Kubeconfig() string { return c.path("pki", "admin.kubeconfig") }

// KubeletRoot is the kubelet's root directory.
func (c *Cluster) KubeletRoot() string { return c.path("kubelet") }

// CSIState is the state directory of a driver instance.
func (c *Cluster) CSIState(driver string) string { return c.path("csi", driver) }

func (c *Cluster) csiSocket(driver string) string {
	return filepath.Join(c.KubeletRoot(), "plugins", driver, "csi.sock")
}

// AuditLog has a line of JSON for each request of Blockmover's accounts.
func (c *Cluster) AuditLog() string { return c.path("audit.log") }

func (c *Cluster) containerdSocket() string { return c.path("containerd", "containerd.sock") }
func (c *Cluster) log(component string) string {
	return c.path("logs", component+".log")
}
func (c *Cluster) bin(name string) string { return filepath.Join(c.Cache, "bin", name) }
func (c *Cluster) runtimeFile(path string) string {
	return filepath.Join(c.Cache, "runtime", path)
}

func (c *Cluster) imageArchive(name string) string {
	return (&artifacts.Cache{Dir: c.Cache}).Image(name)
}

// cgroup is the cluster's cgroup in every hierarchy. The kubelet's pods are below it.
func (c *Cluster) cgroup() string { return "blockmover-" + c.Name }

// Environ is the environment of a command inside the cluster: base with
// KUBECONFIG, PATH to the cache's tools, and what a test needs to know.
func (c *Cluster) Environ(base []string) []string {
	path := os.Getenv("PATH")
	set := map[string]string{
		"KUBECONFIG": c.Kubeconfig(),
		// Its key is the server's address, which all clusters share.
		"KUBECACHEDIR":             c.path("kubectl-cache"),
		"PATH":                     c.bin("") + ":" + path + ":/usr/sbin:/sbin",
		"CONTAINERD_ADDRESS":       c.containerdSocket(),
		"CONTAINERD_NAMESPACE":     "k8s.io",
		"BLOCKMOVER_CLUSTER":       c.Name,
		"BLOCKMOVER_CLUSTER_STATE": c.State,
		"BLOCKMOVER_CACHE":         c.Cache,
		"BLOCKMOVER_S3_URL":        S3URL,
		"BLOCKMOVER_S3_BUCKET":     S3Bucket,
		"BLOCKMOVER_S3_REGION":     S3Region,
		"BLOCKMOVER_S3_ACCESS_KEY": S3AccessKey,
		"BLOCKMOVER_S3_SECRET_KEY": S3SecretKey,
		"BLOCKMOVER_S3_DIR":        c.path("s3"),
		"BLOCKMOVER_CSI_STATE":     c.path("csi"),
		"BLOCKMOVER_KUBELET_ROOT":  c.KubeletRoot(),
		"BLOCKMOVER_DRIVER_BLOCK":  Drivers[0].Name,
		"BLOCKMOVER_DRIVER_ALT":    Drivers[1].Name,
	}
	var env []string
	for _, kv := range base {
		name, _, _ := strings.Cut(kv, "=")
		if _, ok := set[name]; !ok {
			env = append(env, kv)
		}
	}
	for name, value := range set {
		env = append(env, name+"="+value)
	}
	return env
}
