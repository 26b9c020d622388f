package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/blockmover/blockmover/e2e/kit"
	"github.com/blockmover/blockmover/e2e/kubevirt/standin"
)

// world is the cluster, with what stands between its parts.
type world struct {
	kit            *kit.Kit
	state, kubelet string
	drivers        []string
	storage        map[string]csi.ControllerClient
	store          *storeProxy
	tunnels        []*tunnel
	vms            *standin.Standin
	vmHolds        holds
	apps           []*application
	backups        []*backup
}

// holds counts the faults that keep something away.
type holds struct {
	sync.Mutex
	n int
}

// backup is a backup that the judge knows.
type backup struct {
	name string
	app  *application
	// sound is set when the judge has restored it, used while a restore reads it, and deleting when
	// its deletion was asked for.
	sound, used, deleting bool
	// sums are those of the disks of a VM.
	sums map[string]string
}

// scratchMiB is the scratch space of a mover pod. It is small, so that it can be filled.
const scratchMiB = 64

// configuration makes backups of small volumes last some seconds.
const configuration = `rateLimit: 12Mi
scratchSize: 64Mi
`

const (
	storeAddress = "10.77.0.1:7071"
	policyName   = "chaos"
)

// newWorld prepares a cluster of the harness: applications, and proxies before the object store and
// the metadata services.
func newWorld(ctx context.Context, k *kit.Kit) (*world, error) {
	w := &world{
		kit: k, state: os.Getenv("BLOCKMOVER_CLUSTER_STATE"), kubelet: os.Getenv("BLOCKMOVER_KUBELET_ROOT"),
		drivers: []string{os.Getenv("BLOCKMOVER_DRIVER_BLOCK"), os.Getenv("BLOCKMOVER_DRIVER_ALT")},
		storage: map[string]csi.ControllerClient{},
	}
	if w.state == "" {
		return nil, errors.New("BLOCKMOVER_CLUSTER_STATE is not set: run it with `make chaos`")
	}
	var err error
	if w.vms, err = standin.Install(ctx, k); err != nil {
		return nil, err
	}
	k.Components = append(k.Components, "kubevirt")
	if err := w.fill(ctx); err != nil {
		return nil, errors.Join(err, w.vms.Remove())
	}
	return w, nil
}

// fill installs Blockmover and the applications.
func (w *world) fill(ctx context.Context) error {
	if err := w.kit.Install(ctx); err != nil {
		return err
	}
	if err := w.standBetween(ctx); err != nil {
		return err
	}
	for _, d := range w.drivers {
		connection, err := grpc.NewClient("unix://"+filepath.Join(w.kubelet, "plugins", d, "csi.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return fmt.Errorf("connect to driver %s: %w", d, err)
		}
		w.storage[d] = csi.NewControllerClient(connection)
	}
	if err := w.configure(ctx); err != nil {
		return err
	}
	if err := w.writeScripts(); err != nil {
		return err
	}
	w.apps = applications(w.kit)
	for _, a := range w.apps {
		if err := a.install(ctx, w); err != nil {
			return err
		}
	}
	return w.settle(ctx)
}

// standBetween starts the proxies, and has everybody use them.
func (w *world) standBetween(ctx context.Context) error {
	var err error
	if w.store, err = startStoreProxy(storeAddress, os.Getenv("BLOCKMOVER_S3_URL")); err != nil {
		return err
	}
	if err := w.kit.UseStore(ctx, storeAddress); err != nil {
		return err
	}
	for i, d := range w.drivers {
		address, err := w.kit.Kubectl(ctx, "get", "snapshotmetadataservice", d, "-o", "jsonpath={.spec.address}")
		if err != nil {
			return err
		}
		between := port(address, fmt.Sprint(5071+i))
		t, err := startTunnel(between, address)
		if err != nil {
			return err
		}
		w.tunnels = append(w.tunnels, t)
		if _, err := w.kit.Kubectl(ctx, "patch", "snapshotmetadataservice", d, "--type=merge", "-p", fmt.Sprintf(`{"spec":{"address":%q}}`, between)); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) configure(ctx context.Context) error {
	patch, err := json.Marshal(map[string]any{"data": map[string]string{"config.yaml": configuration}})
	if err != nil {
		return err
	}
	if _, err := w.kit.Kubectl(ctx, "-n", w.kit.VeleroNamespace, "patch", "configmap", "blockmover-config", "--type=merge", "-p", string(patch)); err != nil {
		return err
	}
	if err := w.kit.Apply(ctx, fmt.Sprintf(`apiVersion: v1
kind: ConfigMap
metadata: {name: %[1]s, namespace: %[2]s}
data:
  policy.yaml: |
    version: v1
    volumePolicies:
    - conditions: {csi: {}}
      action: {type: custom, parameters: {mover: blockmover}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: %[3]s, namespace: %[2]s}
data:
  policy.yaml: |
    version: v1
    volumePolicies:
    - conditions: {csi: {}}
      action: {type: custom, parameters: {mover: blockmover-kubevirt}}
`, policyName, w.kit.VeleroNamespace, vmPolicy)); err != nil {
		return err
	}
	return w.kit.RestartMover(ctx)
}

func (w *world) stop() error {
	w.store.stop()
	for _, t := range w.tunnels {
		t.stop()
	}
	return w.vms.Remove()
}

// create makes an object, however long the API server is away. An object that is there was made
// by a call whose answer was lost.
func (w *world) create(ctx context.Context, what, manifest string) error {
	return w.wait(ctx, what+" to be created", 2*time.Minute, func(ctx context.Context) (string, error) {
		return "", w.kit.Apply(ctx, manifest)
	})
}

func (w *world) createBackup(ctx context.Context, name string, a *application, o Operation) error {
	annotations := "{}"
	if o.Full {
		annotations = "{blockmover.io/backup-type: full}"
	}
	choice := "snapshotMoveData: true\n  datamover: blockmover"
	// Velero's own action does not find the members of groups that it makes.
	if o.PerVolume || a.volumes[0].group {
		choice = "resourcePolicy: {kind: configmap, name: " + policyName + "}"
	}
	if a.vm {
		choice = "csiSnapshotTimeout: 1m\n  resourcePolicy: {kind: configmap, name: " + vmPolicy + "}"
	}
	// A VM has no pod with the label.
	return w.create(ctx, "backup "+name, fmt.Sprintf(`apiVersion: velero.io/v1
kind: Backup
metadata: {name: %[1]s, namespace: %[2]s, annotations: %[3]s}
spec:
  includedNamespaces: [%[4]s]
  storageLocation: default
  ttl: 24h
  %[5]s
  hooks:
    resources:
    - name: freeze
      includedNamespaces: [%[4]s]
      includedResources: [pods]
      labelSelector: {matchLabels: {app: app}}
      pre:
      - exec: {container: app, command: [sh, -e, /chaos/pre.sh, %[1]s], onError: Fail, timeout: 90s}
      post:
      - exec: {container: app, command: [sh, /chaos/post.sh], onError: Continue, timeout: 60s}
`, name, w.kit.VeleroNamespace, annotations, a.namespace, choice))
}

// createRestore restores a backup into another namespace.
func (w *world) createRestore(ctx context.Context, name string, of *backup, target string) error {
	return w.create(ctx, "restore "+name, fmt.Sprintf(`apiVersion: velero.io/v1
kind: Restore
metadata: {name: %s, namespace: %s}
spec:
  backupName: %s
  includedNamespaces: ["*"]
  namespaceMapping: {%s: %s}
`, name, w.kit.VeleroNamespace, of.name, of.app.namespace, target))
}

// createInPlace restores the volumes of a backup in place.
func (w *world) createInPlace(ctx context.Context, name string, of *backup) error {
	return w.create(ctx, "restore in place "+name, fmt.Sprintf(`apiVersion: velero.io/v1
kind: Restore
metadata: {name: %s, namespace: %s, annotations: {blockmover.io/in-place: "true"}}
spec:
  backupName: %s
  includedNamespaces: ["*"]
  includedResources: [persistentvolumeclaims]
`, name, w.kit.VeleroNamespace, of.name))
}

// scale starts or stops an application.
func (w *world) scale(ctx context.Context, a *application, replicas int) error {
	if a.vm {
		return w.runVM(ctx, a, replicas > 0)
	}
	return w.wait(ctx, fmt.Sprintf("%d pods of %s", replicas, a.namespace), 3*time.Minute, func(ctx context.Context) (string, error) {
		if _, err := w.kit.Kubectl(ctx, "-n", a.namespace, "scale", "deployment/app", fmt.Sprintf("--replicas=%d", replicas)); err != nil {
			return "", err
		}
		pods, err := w.kit.List(ctx, "-n", a.namespace, "pods", "-l", "app=app")
		if err != nil || len(pods) == replicas {
			return "", err
		}
		return fmt.Sprint(pods), nil
	})
}
