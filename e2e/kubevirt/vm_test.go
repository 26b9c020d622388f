package kubevirt

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/e2e/kit"
	"github.com/blockmover/blockmover/e2e/kubevirt/standin"
)

// disk is a disk of the VM: its PVC, its name in the VM, and what it is in a pod that has the
// restored volume.
type disk struct {
	claim, volume string
	mount         kit.Mount
	// file is the content of the disk in the pod.
	file string
}

// disks are those of vm.yaml, in the order in which a guest counts on them.
var disks = []disk{
	{"blk", "d-blk", kit.Mount{Claim: "blk", Path: "/dev/blk", Block: true}, "/dev/blk"},
	{"fs", "d-fs", kit.Mount{Claim: "fs", Path: "/fs"}, "/fs/disk.img"},
	{"disk-3-9", "d-3-9", kit.Mount{Claim: "disk-3-9", Path: "/dev/disk-3-9", Block: true}, "/dev/disk-3-9"},
}

const policy = `version: v1
volumePolicies:
- conditions: {csi: {}}
  action: {type: custom, parameters: {mover: blockmover-kubevirt}}
`

// scenario is the view that one test has of the cluster.
type scenario struct {
	*testing.T
	kit    *kit.Kit
	ctx    context.Context
	suffix string
}

func newScenario(t *testing.T) *scenario {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Minute)
	t.Cleanup(cancel)
	return &scenario{T: t, kit: newKit(t.Logf), ctx: ctx, suffix: strconv.FormatInt(time.Now().UnixNano()/1000%0xffffff, 36)}
}

func (s *scenario) kubectl(args ...string) string {
	s.Helper()
	out, err := s.kit.Kubectl(s.ctx, args...)
	require.NoError(s, err)
	return out
}

func (s *scenario) namespace(base string) string {
	name := base + "-" + s.suffix
	s.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
		defer cancel()
		require.NoError(s, s.kit.DeleteNamespace(ctx, name))
	})
	return name
}

// vm is the VM of vm.yaml in a namespace, and its guest.
type vm struct {
	namespace string
	guest
}

// start makes the VM with its disks, and waits until it runs and its changes are tracked.
func (s *scenario) start() vm {
	s.Helper()
	namespace := s.namespace("vms")
	manifest, err := os.ReadFile(filepath.Join(os.Getenv("BLOCKMOVER_E2E"), "kubevirt", "vm.yaml"))
	require.NoError(s, err)
	require.NoError(s, s.kit.Apply(s.ctx, strings.NewReplacer("NAMESPACE", namespace, "CLASS", s.kit.StorageClass).Replace(string(manifest))))
	s.kubectl("-n", namespace, "wait", "pod/make-disk", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=60s")
	s.kubectl("-n", namespace, "delete", "pod", "make-disk")
	s.setStrategy(namespace, "Always")
	return s.running(namespace)
}

func (s *scenario) setStrategy(namespace, strategy string) {
	s.Helper()
	s.kubectl("-n", namespace, "patch", "vm", "vm1", "--type=merge", "-p", fmt.Sprintf(`{"spec":{"runStrategy":%q}}`, strategy))
}

// running waits until the VM runs, its guest agent answers, and its changes are tracked.
func (s *scenario) running(namespace string) vm {
	s.Helper()
	err := s.kit.Wait(s.ctx, "VM to run", 3*time.Minute, func(ctx context.Context) (bool, string, error) {
		status, err := s.kit.Kubectl(ctx, "-n", namespace, "get", "vm", "vm1", "-o",
			`jsonpath={.status.printableStatus} {.status.changedBlockTracking.state} {.status.conditions[?(@.type=="AgentConnected")].status}`)
		return status == "Running Enabled True", status, err
	})
	require.NoError(s, err)
	return vm{namespace, theWorld.guest(s.kit, namespace)}
}

// fill writes random data to all disks, at the same place.
func (s *scenario) fill(g vm, kib, blocks, first int) {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, 2*time.Minute)
	defer cancel()
	for _, d := range disks {
		require.NoError(s, g.fill(ctx, d.claim, kib, blocks, first))
	}
}

// sums are the sums of the disks as the guest sees them, by PVC.
func (s *scenario) sums(g vm) map[string]string {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, 2*time.Minute)
	defer cancel()
	sums := map[string]string{}
	for _, d := range disks {
		sum, err := g.sum(ctx, d.claim)
		require.NoError(s, err)
		sums[d.claim] = sum
	}
	return sums
}

func (s *scenario) deleteBackupInTheEnd(name string) {
	s.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
		defer cancel()
		require.NoError(s, s.kit.EnsureNoBackup(ctx, name))
	})
}

// backUp makes a backup of the VM's namespace, and returns the results of its disks by PVC.
func (s *scenario) backUp(name, namespace string, args ...string) map[string]map[string]string {
	s.Helper()
	s.deleteBackupInTheEnd(name)
	began := time.Now()
	require.NoError(s, s.kit.MustBackup(s.ctx, name, append([]string{"--include-namespaces", namespace, "--resource-policies-configmap", s.policy()}, args...)...))
	uploads, err := s.kit.DataUploads(s.ctx, name)
	require.NoError(s, err)
	require.GreaterOrEqual(s, len(uploads), len(disks), kit.Names(uploads))
	results := map[string]map[string]string{}
	for claim, u := range uploads {
		results[claim] = u.Status.DataMoverResult
		s.Logf("backup %s of %s after %.1f s: %v", name, claim, time.Since(began).Seconds(), u.Status.DataMoverResult)
	}
	require.NoError(s, s.kit.WaitNoLeftovers(s.ctx))
	return results
}

func (s *scenario) policy() string {
	name := "vm-policy-" + s.suffix
	_, err := s.kit.Run(s.ctx, fmt.Sprintf("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: %s, namespace: %s}\ndata:\n  policy.yaml: |\n    %s\n",
		name, s.kit.VeleroNamespace, strings.ReplaceAll(policy, "\n", "\n    ")), "kubectl", "apply", "-f", "-")
	require.NoError(s, err)
	return name
}

// restoreDisks restores only the disks into a namespace of their own, and starts a pod that has
// them.
func (s *scenario) restoreDisks(backup, from, base string) *kit.App {
	s.Helper()
	target := s.namespace(base)
	require.NoError(s, s.kit.MustRestore(s.ctx, base+"-"+s.suffix, backup, "--namespace-mappings", from+":"+target,
		"--include-resources", "persistentvolumeclaims,persistentvolumes"))
	var mounts []kit.Mount
	for _, d := range disks {
		mounts = append(mounts, d.mount)
	}
	require.NoError(s, s.kit.Apply(s.ctx, s.kit.Deployment(target, mounts...)))
	app, err := s.kit.AppIn(s.ctx, target)
	require.NoError(s, err)
	return app
}

func (s *scenario) requireSums(app *kit.App, want map[string]string) {
	s.Helper()
	for _, d := range disks {
		out, err := app.Exec(s.ctx, "md5sum "+d.file)
		require.NoError(s, err)
		require.Equal(s, want[d.claim], strings.Fields(out)[0], "disk %s", d.claim)
	}
}

// requireEqual has QEMU compare the restored disks with those of a guest that writes nothing.
func (s *scenario) requireEqual(app *kit.App, g vm) {
	s.Helper()
	pod := s.kubectl("-n", app.Namespace, "get", "pods", "-l", "app=app", "-o", "jsonpath={.items[0].metadata.uid}")
	for _, d := range disks {
		volume := s.kubectl("-n", app.Namespace, "get", "pvc", d.claim, "-o", "jsonpath={.spec.volumeName}")
		restored := standin.HostPath(os.Getenv("BLOCKMOVER_KUBELET_ROOT"), pod, volume, d.mount.Block)
		if !d.mount.Block {
			restored = filepath.Join(restored, "disk.img")
		}
		address, err := g.nbd(s.ctx, d.claim)
		require.NoError(s, err)
		out, err := s.kit.Run(s.ctx, "", "qemu-img", "compare", "-f", "raw", "-F", "raw", address, restored)
		require.NoError(s, err, out)
	}
}

// TestRunningVM backs up the disks of a running VM, in full and again and again what changed, quiet and while
// the guest writes an ascending counter to one disk after the other. What is restored is what the
// guest saw.
func TestRunningVM(t *testing.T) {
	s := newScenario(t)
	g := s.start()
	s.fill(g, 1024, 6, 3)
	name := func(n int) string { return fmt.Sprintf("vm-%d-%s", n, s.suffix) }
	want := map[int]map[string]string{1: s.sums(g)}
	for claim, result := range s.backUp(name(1), g.namespace) {
		require.Equal(t, "Full NoParent", result["kind"]+" "+result["reason"], claim)
	}
	for n := 2; n <= 3; n++ {
		s.fill(g, 64, 3, 37*n)
		want[n] = s.sums(g)
		for claim, result := range s.backUp(name(n), g.namespace) {
			require.Equal(t, "Incremental ", result["kind"]+" "+result["reason"], "%s: %s", claim, result["detail"])
			read, err := strconv.Atoi(result["bytesRead"])
			require.NoError(t, err)
			require.LessOrEqual(t, read, 4*64<<10, "of %s", claim)
		}
	}

	s.requireEqual(s.restoreDisks(name(3), g.namespace, "compared"), g)

	require.NoError(t, g.count(s.ctx))
	last := 3 + theWorld.rounds()
	for n := 4; n <= last; n++ {
		for claim, result := range s.backUp(name(n), g.namespace) {
			require.Equal(t, "Incremental ", result["kind"]+" "+result["reason"], "%s: %s", claim, result["detail"])
		}
	}
	require.NoError(t, g.stopCounting(s.ctx))

	for n := 1; n <= 2; n++ {
		s.requireSums(s.restoreDisks(name(n), g.namespace, fmt.Sprintf("quiet-%d", n)), want[n])
	}
	before := 0
	for n := 4; n <= last; n++ {
		counters := s.counters(s.restoreDisks(name(n), g.namespace, fmt.Sprintf("busy-%d", n)))
		t.Logf("backup %s shows the counters %v", name(n), counters)
		require.True(t, counters[0] >= counters[1] && counters[1] >= counters[2] && counters[0] <= counters[2]+1, "one instant: %v", counters)
		require.Greater(t, counters[0], before, "a later instant")
		before = counters[0]
	}

	// Any of them can go.
	for _, n := range []int{1, 4, 2} {
		require.NoError(t, s.kit.DeleteBackup(s.ctx, name(n)))
	}
	s.requireSums(s.restoreDisks(name(3), g.namespace, "after-deletion"), want[3])
	kopia, err := s.kit.StockKopia(s.ctx, g.namespace, t.TempDir())
	require.NoError(t, err)
	require.NoError(t, kopia.Verify(s.ctx))
}

// counters reads what the writer has written to each disk, in its order.
func (s *scenario) counters(app *kit.App) []int {
	s.Helper()
	var counters []int
	for _, d := range disks {
		out, err := app.Exec(s.ctx, "dd if="+d.file+" bs=16 skip=65536 count=1 2>/dev/null")
		require.NoError(s, err)
		n, err := strconv.Atoi(strings.TrimSpace(out))
		require.NoError(s, err)
		counters = append(counters, n)
	}
	return counters
}

// TestRestoredVM restores a VM into another namespace and onto other storage. It starts after its last
// disk, and sees what the first one saw. Its first backup is full, the next one has what changed.
func TestRestoredVM(t *testing.T) { newScenario(t).testRestoredVM() }

// TestBesideVelerosPlugin does the same while Velero's plugin for KubeVirt is installed, too.
func TestBesideVelerosPlugin(t *testing.T) {
	if _, ok := theWorld.(realWorld); !ok {
		t.Skip("the plugin is built with real KubeVirt")
	}
	s := newScenario(t)
	const image = "docker.io/kubevirtlab/kubevirt-velero-plugin:e2e"
	require.NoError(t, s.kit.AddPlugin(s.ctx, image, "kubevirt-velero-plugin/restore-vm-action"))
	s.testRestoredVM()
	require.NoError(t, s.kit.RemovePlugin(s.ctx, image))
}

func (s *scenario) testRestoredVM() {
	s.Helper()
	g := s.start()
	s.fill(g, 64, 20, 5)
	want := s.sums(g)
	backup := "whole-" + s.suffix
	s.backUp(backup, g.namespace)
	require.NoError(s, s.kit.MapStorageClass(s.ctx, "vm-class", s.kit.StorageClass, s.kit.OtherStorageClass))
	target := s.namespace("copy")
	err := s.kit.MustRestore(s.ctx, backup, backup, "--namespace-mappings", g.namespace+":"+target)
	s.kubectl("-n", s.kit.VeleroNamespace, "delete", "configmap", "vm-class")
	if err != nil {
		log, _ := s.kit.Velero(s.ctx, "restore", "logs", backup)
		s.Log(log)
	}
	require.NoError(s, err)
	require.Equal(s, "Always", s.kubectl("-n", target, "get", "vm", "vm1", "-o", "jsonpath={.spec.runStrategy}{.metadata.annotations.blockmover\\.io/run-strategy}"))
	copied := s.running(target)
	require.Equal(s, want, s.sums(copied))
	require.NoError(s, s.kit.CheckStamps(s.ctx, target))
	for _, d := range disks {
		require.Equal(s, s.kit.OtherStorageClass, s.kubectl("-n", target, "get", "pvc", d.claim, "-o", "jsonpath={.spec.storageClassName}"))
	}

	for n, kind := range []string{"Full NoParent", "Incremental "} {
		s.fill(copied, 64, 1, 100+n)
		for claim, result := range s.backUp(fmt.Sprintf("copied-%d-%s", n, s.suffix), target) {
			require.Equal(s, kind, result["kind"]+" "+result["reason"], claim)
		}
	}
}

// TestDisksRestoredInPlace restores disks in place while the VM is stopped. QEMU does not see that, so the next
// backup is full, and has what the guest saw. The one after it is an increment again.
func TestDisksRestoredInPlace(t *testing.T) {
	s := newScenario(t)
	g := s.start()
	s.fill(g, 1024, 6, 3)
	name := func(n int) string { return fmt.Sprintf("vm-in-place-%d-%s", n, s.suffix) }
	s.backUp(name(1), g.namespace)
	s.fill(g, 64, 3, 50)
	s.backUp(name(2), g.namespace)
	s.stop(g.namespace)
	require.NoError(t, s.kit.MustRestore(s.ctx, "vm-in-place-"+s.suffix, name(1), "--annotations", "blockmover.io/in-place=true",
		"--include-resources", "persistentvolumeclaims", "--selector", "disk=block"))
	s.setStrategy(g.namespace, "Always")
	g = s.running(g.namespace)
	for claim, result := range s.backUp(name(3), g.namespace) {
		require.Equal(t, "Full DiskRestored", result["kind"]+" "+result["reason"], "%s: %s", claim, result["detail"])
	}
	s.requireEqual(s.restoreDisks(name(3), g.namespace, "restored-in-place"), g)
	s.fill(g, 64, 1, 70)
	for claim, result := range s.backUp(name(4), g.namespace) {
		require.Equal(t, "Incremental ", result["kind"]+" "+result["reason"], "%s: %s", claim, result["detail"])
	}
	s.requireEqual(s.restoreDisks(name(4), g.namespace, "restored-again"), g)
}
