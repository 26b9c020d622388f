package kit

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// App is an application with one Filesystem PVC "files" (ext4) and one Block
// PVC "disk", both held by one Deployment "app".
type App struct {
	kit       *Kit
	Namespace string
}

// Names of the App's objects, and where its volumes are in the container.
const (
	FilesPVC = "files"
	DiskPVC  = "disk"

	filesPath = "/files"
	diskPath  = "/dev/disk"
)

// DiskSize is the size of the App's disk in bytes. It is not a multiple of 1 MiB.
const DiskSize = 160<<20 + 4096

const filesSize = 96 << 20

// NewApp creates the namespace and the application and waits until it runs.
func (k *Kit) NewApp(ctx context.Context, namespace string) (*App, error) {
	a := &App{kit: k, Namespace: namespace}
	manifest := fmt.Sprintf(`
apiVersion: v1
kind: Namespace
metadata: {name: %[1]s, labels: {blockmover-e2e: app}}
---
%[2]s
---
%[3]s
---
%[4]s
`, namespace, PVC(namespace, FilesPVC, k.StorageClass, "Filesystem", filesSize),
		PVC(namespace, DiskPVC, k.StorageClass, "Block", DiskSize),
		k.Deployment(namespace, Mount{Claim: FilesPVC, Path: filesPath}, Mount{Claim: DiskPVC, Path: diskPath, Block: true}))
	if err := k.Apply(ctx, manifest); err != nil {
		return nil, err
	}
	if err := a.WaitRunning(ctx); err != nil {
		return nil, err
	}
	return a, nil
}

// Mount is where a container has the volume of a PVC: a directory, or a device.
type Mount struct {
	Claim, Path string
	Block       bool
}

// Deployment renders the Deployment "app", whose one pod holds volumes.
func (k *Kit) Deployment(namespace string, mounts ...Mount) string {
	volumes := make([]string, 0, len(mounts))
	var directories, devices []string
	for _, m := range mounts {
		volumes = append(volumes, fmt.Sprintf("{name: %[1]s, persistentVolumeClaim: {claimName: %[1]s}}", m.Claim))
		if m.Block {
			devices = append(devices, fmt.Sprintf("{name: %s, devicePath: %s}", m.Claim, m.Path))
		} else {
			directories = append(directories, fmt.Sprintf("{name: %s, mountPath: %s}", m.Claim, m.Path))
		}
	}
	return fmt.Sprintf(`apiVersion: apps/v1
kind: Deployment
metadata: {name: app, namespace: %s}
spec:
  replicas: 1
  strategy: {type: Recreate}
  selector: {matchLabels: {app: app}}
  template:
    metadata: {labels: {app: app}}
    spec:
      terminationGracePeriodSeconds: 1 # with 0, the pod is gone before its volumes are unmounted
      containers:
      - name: app
        image: %s
        imagePullPolicy: IfNotPresent
        command: [sh, -c, "sleep 1000000"]
        volumeMounts: [%s]
        volumeDevices: [%s]
      volumes: [%s]
`, namespace, k.ToolsImage, strings.Join(directories, ", "), strings.Join(devices, ", "), strings.Join(volumes, ", "))
}

// PVC renders a ReadWriteOnce PVC of size bytes, with labels like "key: value".
func PVC(namespace, name, class, mode string, size int64, labels ...string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: %s, namespace: %s, labels: {%s}}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: %s
  volumeMode: %s
  resources: {requests: {storage: "%d"}}`, name, namespace, strings.Join(labels, ", "), class, mode, size)
}

// AppIn returns the App that a restore has made in a namespace.
func (k *Kit) AppIn(ctx context.Context, namespace string) (*App, error) {
	a := &App{kit: k, Namespace: namespace}
	if err := a.WaitRunning(ctx); err != nil {
		return nil, err
	}
	return a, nil
}

// WaitRunning waits until the Deployment has its pod.
func (a *App) WaitRunning(ctx context.Context) error {
	return a.kit.Wait(ctx, "application in namespace "+a.Namespace, 2*time.Minute, func(ctx context.Context) (bool, string, error) {
		found, err := a.kit.List(ctx, "-n", a.Namespace, "deployments.apps", "--field-selector", "metadata.name=app")
		if err != nil {
			return false, "", err
		}
		pods, err := a.kit.Kubectl(ctx, "-n", a.Namespace, "get", "pods", "-o", "jsonpath={.items[*].status}")
		return len(found) == 1 && found[0].Status.ReadyReplicas == 1, tail(pods), err
	})
}

// Stop scales the application down, and waits until its pod is gone.
func (a *App) Stop(ctx context.Context) error {
	if _, err := a.kit.Kubectl(ctx, "-n", a.Namespace, "scale", "deploy/app", "--replicas=0"); err != nil {
		return err
	}
	return a.kit.Wait(ctx, "end of the application in namespace "+a.Namespace, time.Minute, func(ctx context.Context) (bool, string, error) {
		pods, err := a.kit.List(ctx, "-n", a.Namespace, "pods", "-l", "app=app")
		return len(pods) == 0, fmt.Sprint(pods), err
	})
}

// Start scales the application up again, and waits until it runs.
func (a *App) Start(ctx context.Context) error {
	if _, err := a.kit.Kubectl(ctx, "-n", a.Namespace, "scale", "deploy/app", "--replicas=1"); err != nil {
		return err
	}
	return a.WaitRunning(ctx)
}

// Exec runs a shell command in the application.
func (a *App) Exec(ctx context.Context, script string) (string, error) {
	return a.kit.Kubectl(ctx, "-n", a.Namespace, "exec", "deploy/app", "--", "sh", "-ec", script)
}

// WriteInitial fills about a third of both volumes: random data, text and
// holes.
func (a *App) WriteInitial(ctx context.Context) error {
	_, err := a.Exec(ctx, strings.NewReplacer("FILES", filesPath, "DISK", diskPath).Replace(`
mkdir -p FILES/a/b
dd if=/dev/urandom of=FILES/a/random bs=1M count=24 2>/dev/null
i=0; while [ $i -lt 200 ]; do echo "line $i of a text file" > FILES/a/b/text-$i; i=$((i+1)); done
ln -s ../a/random FILES/a/link
dd if=/dev/urandom of=DISK bs=1M count=40 conv=notrunc 2>/dev/null
dd if=/dev/urandom of=DISK bs=1M seek=100 count=8 conv=notrunc 2>/dev/null
dd if=/dev/urandom of=DISK bs=4096 seek=40960 count=1 conv=notrunc 2>/dev/null
sync
`))
	return err
}

// ChangedDiskBytes is how much Change writes to the disk.
const ChangedDiskBytes = 2 << 20

// Change writes about one percent: two places of 1 MiB on the disk, one new file and one
// rewritten file.
func (a *App) Change(ctx context.Context) error {
	_, err := a.Exec(ctx, strings.NewReplacer("FILES", filesPath, "DISK", diskPath).Replace(`
dd if=/dev/urandom of=DISK bs=1M seek=7 count=1 conv=notrunc 2>/dev/null
dd if=/dev/urandom of=DISK bs=1M seek=120 count=1 conv=notrunc 2>/dev/null
echo "$(date +%s%N) changed" > FILES/a/b/text-7
dd if=/dev/urandom of=FILES/new bs=64K count=4 2>/dev/null
sync
`))
	return err
}

// Sums is the content of an App: the hash of its disk and of each of its files.
type Sums struct {
	Disk  string
	Files string
}

// Sums reads both volumes completely, the disk not through the page cache.
func (a *App) Sums(ctx context.Context) (Sums, error) {
	disk, err := a.Exec(ctx, "sha256sum < "+diskPath)
	if err != nil {
		return Sums{}, err
	}
	files, err := a.Exec(ctx, "cd "+filesPath+" && "+sumFiles)
	if err != nil {
		return Sums{}, err
	}
	return Sums{Disk: strings.Fields(disk)[0], Files: files}, nil
}

const sumFiles = "find . -type f | LC_ALL=C sort | xargs sha256sum && find . ! -type f | LC_ALL=C sort | grep -v lost+found && readlink a/link"

// DirectorySums are the Sums.Files of files that are in a directory of this machine.
func (k *Kit) DirectorySums(ctx context.Context, dir string) (string, error) {
	return k.Run(ctx, "", "sh", "-ec", "cd '"+dir+"' && "+sumFiles)
}

// Diff says how two contents differ. It returns "" if they are equal.
func (s Sums) Diff(other Sums) string {
	var diffs []string
	if s.Disk != other.Disk {
		diffs = append(diffs, fmt.Sprintf("disk: %s, want %s", other.Disk, s.Disk))
	}
	if s.Files != other.Files {
		diffs = append(diffs, fmt.Sprintf("files:\n%s\nwant:\n%s", other.Files, s.Files))
	}
	return strings.Join(diffs, "; ")
}

// DeleteNamespace deletes a namespace, and waits until it and the volumes that were bound in
// it are gone.
func (k *Kit) DeleteNamespace(ctx context.Context, namespace string) error {
	if _, err := k.Kubectl(ctx, "delete", "namespace", namespace, "--ignore-not-found", "--timeout=120s"); err != nil {
		return err
	}
	return k.Wait(ctx, "volumes of namespace "+namespace+" to be deleted", time.Minute, func(ctx context.Context) (bool, string, error) {
		volumes, err := k.List(ctx, "persistentvolumes")
		if err != nil {
			return false, "", err
		}
		for _, v := range volumes {
			if v.Spec.ClaimRef != nil && v.Spec.ClaimRef.Namespace == namespace {
				return false, v.Metadata.Name, nil
			}
		}
		return true, "", nil
	})
}
