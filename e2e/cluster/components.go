package cluster

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// component is a process of the cluster, in its own log file.
type component struct {
	name string
	argv []string
	env  []string
}

func (c *Cluster) kube(name string, args ...string) component {
	return component{name: name, argv: append([]string{c.bin("kube"), name}, args...)}
}

func (c *Cluster) etcd() component {
	return c.kube("etcd",
		"--data-dir="+c.path("etcd"), "--unsafe-no-fsync", "--log-level=warn",
		"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
		"--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
		"--initial-cluster=default=http://127.0.0.1:2380",
	)
}

func (c *Cluster) apiserver() component {
	pki := func(name string) string { return c.path("pki", name) }
	return c.kube("kube-apiserver",
		"--etcd-servers=http://127.0.0.1:2379",
		"--bind-address=0.0.0.0", "--secure-port=443", "--advertise-address="+NodeIP,
		// Only this process serves the address of the Service.
		"--endpoint-reconciler-type=none",
		"--service-cluster-ip-range="+serviceCIDR,
		"--tls-cert-file="+pki("apiserver.crt"), "--tls-private-key-file="+pki("apiserver.key"),
		"--client-ca-file="+pki("ca.crt"),
		"--kubelet-certificate-authority="+pki("ca.crt"),
		"--kubelet-client-certificate="+pki("apiserver-kubelet-client.crt"),
		"--kubelet-client-key="+pki("apiserver-kubelet-client.key"),
		"--kubelet-preferred-address-types=InternalIP",
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file="+pki("service-accounts.key"),
		"--service-account-signing-key-file="+pki("service-accounts.key"),
		"--authorization-mode=Node,RBAC",
		// Aggregated APIs, as KubeVirt's: there is no kube-proxy, so they are called by endpoint,
		// and they know the API server by its front proxy certificate.
		"--enable-aggregator-routing=true",
		"--requestheader-client-ca-file="+pki("ca.crt"),
		"--requestheader-allowed-names=front-proxy-client",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--requestheader-group-headers=X-Remote-Group",
		"--requestheader-username-headers=X-Remote-User",
		"--proxy-client-cert-file="+pki("front-proxy-client.crt"),
		"--proxy-client-key-file="+pki("front-proxy-client.key"),
		// What our accounts ask for, for the search for rights without a use.
		"--audit-policy-file="+c.path("audit.yaml"), "--audit-log-path="+c.AuditLog(), "--audit-log-maxsize=1000",
		"--allow-privileged=true", "--profiling=false", "--event-ttl=3h",
	)
}

func (c *Cluster) controllerManager() component {
	return c.kube("kube-controller-manager",
		"--kubeconfig="+c.path("pki", "controller-manager.kubeconfig"),
		"--authentication-kubeconfig="+c.path("pki", "controller-manager.kubeconfig"),
		"--authorization-kubeconfig="+c.path("pki", "controller-manager.kubeconfig"),
		"--root-ca-file="+c.path("pki", "ca.crt"),
		"--service-account-private-key-file="+c.path("pki", "service-accounts.key"),
		"--use-service-account-credentials=true", "--leader-elect=false", "--profiling=false",
		// The default of 20 a second costs 4 s at the start.
		"--kube-api-qps=200", "--kube-api-burst=400",
	)
}

func (c *Cluster) scheduler() component {
	return c.kube("kube-scheduler",
		"--kubeconfig="+c.path("pki", "scheduler.kubeconfig"),
		"--authentication-kubeconfig="+c.path("pki", "scheduler.kubeconfig"),
		"--authorization-kubeconfig="+c.path("pki", "scheduler.kubeconfig"),
		"--leader-elect=false", "--profiling=false", "--kube-api-qps=200", "--kube-api-burst=400",
	)
}

func (c *Cluster) kubelet() component {
	return c.kube("kubelet",
		"--config="+c.path("kubelet.yaml"),
		"--kubeconfig="+c.path("pki", "kubelet.kubeconfig"),
		"--root-dir="+c.KubeletRoot(), "--cert-dir="+c.path("pki"),
		"--hostname-override="+c.Name, "--node-ip="+NodeIP,
	)
}

func (c *Cluster) containerd() component {
	sbin := c.runtimeFile("usr/sbin")
	return component{
		name: "containerd",
		argv: []string{c.runtimeFile("usr/bin/containerd"), "--config", c.path("containerd.toml")},
		env: []string{
			// runc, the shims, and the applets of the runtime's own busybox.
			"PATH=" + strings.Join([]string{c.runtimeFile("usr/bin"), sbin, os.Getenv("PATH"), "/usr/sbin", "/sbin"}, ":"),
			"LD_LIBRARY_PATH=" + c.runtimeFile("usr/lib/x86_64-linux-gnu"),
		},
	}
}

func (c *Cluster) objectStore() component {
	return component{
		name: "versitygw",
		argv: []string{
			c.bin("versitygw"), "--access", S3AccessKey, "--secret", S3SecretKey, "--region", S3Region,
			"--port", NodeIP + ":7070", "posix", c.path("s3"),
		},
	}
}

func (c *Cluster) snapshotController() component {
	return component{
		name: "snapshot-controller",
		argv: []string{
			c.bin("snapshot-controller"), "--kubeconfig=" + c.Kubeconfig(),
			"--feature-gates=CSIVolumeGroupSnapshot=true", "--kube-api-qps=100", "--kube-api-burst=200",
		},
	}
}

// csiDriver is the driver itself; it registers itself with the kubelet.
func (c *Cluster) csiDriver(d Driver) component {
	return component{
		name: "csidriver-" + d.Name,
		argv: []string{
			c.bin("csidriver"), "--endpoint=unix://" + c.csiSocket(d.Name), "--driver-name=" + d.Name,
			"--node-id=" + c.Name, "--state-dir=" + c.CSIState(d.Name),
			"--kubelet-registration-path=" + c.csiSocket(d.Name),
			"--kubelet-plugin-registry=" + filepath.Join(c.KubeletRoot(), "plugins_registry"),
		},
	}
}

// csiSidecars are the processes beside one driver. They wait for its socket.
func (c *Cluster) csiSidecars(d Driver) []component {
	sidecar := func(binary string, args ...string) component {
		common := []string{c.bin(binary), "--kubeconfig=" + c.Kubeconfig(), "--csi-address=" + c.csiSocket(d.Name)}
		return component{name: binary + "-" + d.Name, argv: append(common, args...)}
	}
	fast := []string{"--kube-api-qps=100", "--kube-api-burst=200"}
	return []component{
		// The provisioner holds a VolumeSnapshot until it sweeps, after it could not make a volume of it.
		sidecar("csi-provisioner", append(fast, "--feature-gates=Topology=true", "--extra-create-metadata", "--timeout=60s", "--snapshot-orphan-sweep-interval=10s")...),
		sidecar("csi-snapshotter", append(fast, "--feature-gates=CSIVolumeGroupSnapshot=true", "--extra-create-metadata", "--timeout=60s")...),
		sidecar("csi-resizer", append(fast, "--timeout=60s")...),
		sidecar("csi-snapshot-metadata", append(fast,
			"--port="+strconv.Itoa(d.metadataPort),
			"--http-endpoint=127.0.0.1:"+strconv.Itoa(d.healthPort),
			"--tls-cert="+c.path("pki", "snapshot-metadata.crt"),
			"--tls-key="+c.path("pki", "snapshot-metadata.key"))...),
	}
}

// writeConfigs writes the files that the components read.
func (c *Cluster) writeConfigs() error {
	for name, text := range map[string]string{
		"containerd.toml":        c.containerdConfig(),
		"cni/10-bridge.conflist": c.cniConfig(),
		"kubelet.yaml":           c.kubeletConfig(),
		"audit.yaml":             auditPolicy,
		"s3-credentials":         fmt.Sprintf("[default]\naws_access_key_id=%s\naws_secret_access_key=%s\n", S3AccessKey, S3SecretKey),
	} {
		if err := os.MkdirAll(filepath.Dir(c.path(name)), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(c.path(name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// auditPolicy records the requests of the service accounts that deploy makes.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
  users:
  - system:serviceaccount:` + VeleroNamespace + `:blockmover-manager
  - system:serviceaccount:` + VeleroNamespace + `:blockmover-plugin
  - system:serviceaccount:` + VeleroNamespace + `:blockmover-verifier
  - system:serviceaccount:` + VeleroNamespace + `:blockmover-worker
- level: None
`

func (c *Cluster) containerdConfig() string {
	return fmt.Sprintf(`version = 2
root = %q
state = %q
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
  address = %q
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "docker.io/library/pause:e2e"
  # Without CAP_SYS_RESOURCE runc cannot lower oom_score_adj, and dies.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = %q
    conf_dir = %q
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
      BinaryName = %q
`, c.path("containerd"), c.path("containerd", "state"), c.containerdSocket(),
		c.runtimeFile("usr/lib/cni"), c.path("cni"), c.runtimeFile("usr/sbin/runc"))
}

func (c *Cluster) cniConfig() string {
	return fmt.Sprintf(`{
  "cniVersion": "1.0.0",
  "name": "blockmover",
  "plugins": [{
    "type": "bridge", "bridge": "cni0", "isGateway": true, "isDefaultGateway": true, "hairpinMode": true,
    "ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": %q}]]}
  }]
}
`, c.path("cni-data"), podCIDR)
}

func (c *Cluster) kubeletConfig() string {
	return fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: 0.0.0.0
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: %[1]q}
authorization: {mode: Webhook}
tlsCertFile: %[2]q
tlsPrivateKeyFile: %[3]q
containerRuntimeEndpoint: "unix://%[4]s"
cgroupDriver: cgroupfs
cgroupRoot: "/%[5]s"
failCgroupV1: false
failSwapOn: false
oomScoreAdj: 0
makeIPTablesUtilChains: false
resolvConf: ""
clusterDomain: cluster.local
podLogsDir: %[6]q
volumePluginDir: %[7]q
maxPods: 200
# The disk is shared with others, and images cannot be pulled again.
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
evictionHard: {memory.available: "100Mi", nodefs.available: "0%%", nodefs.inodesFree: "0%%", imagefs.available: "0%%", imagefs.inodesFree: "0%%"}
nodeStatusUpdateFrequency: 5s
registryPullQPS: 0
eventRecordQPS: 0
kubeAPIQPS: 100
kubeAPIBurst: 200
`, c.path("pki", "ca.crt"), c.path("pki", "kubelet-server.crt"), c.path("pki", "kubelet-server.key"),
		c.containerdSocket(), c.cgroup(), c.path("pod-logs"), c.path("volume-plugins"))
}

// importImages loads image archives into containerd.
func (c *Cluster) importImages(ctx context.Context, archives ...string) error {
	for _, archive := range archives {
		args := []string{"--address", c.containerdSocket(), "--namespace", "k8s.io", "images", "import", archive}
		if err := run(ctx, c.runtimeFile("usr/bin/ctr"), args...); err != nil {
			return fmt.Errorf("import image %s: %w; see %s", filepath.Base(archive), err, c.log("containerd"))
		}
	}
	return nil
}
