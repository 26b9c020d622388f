package standin

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
)

// CRDs are those of the kinds that the stand-in serves.
//
//go:embed crds.yaml
var CRDs string

var (
	vms      = schema.GroupVersionResource{Group: "kubevirt.io", Version: "v1", Resource: "virtualmachines"}
	vmis     = schema.GroupVersionResource{Group: "kubevirt.io", Version: "v1", Resource: "virtualmachineinstances"}
	backups  = schema.GroupVersionResource{Group: "backup.kubevirt.io", Version: "v1alpha1", Resource: "virtualmachinebackups"}
	trackers = schema.GroupVersionResource{Group: "backup.kubevirt.io", Version: "v1alpha1", Resource: "virtualmachinebackuptrackers"}
	pods     = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	claims   = schema.GroupVersionResource{Version: "v1", Resource: "persistentvolumeclaims"}
	events   = schema.GroupVersionResource{Version: "v1", Resource: "events"}
)

const (
	finalizer = "standin.blockmover.io/protection"
	// userID owns the files of a backup.
	userID = 107
	period = 300 * time.Millisecond
)

// Options of a stand-in. All are required.
type Options struct {
	// Kubelet is the directory where the kubelet mounts volumes, Directory an empty one with a
	// short name.
	Kubelet, Directory string
	// Image has sh and sleep.
	Image string
	Log   func(format string, args ...any)
}

// Standin is the controller and the node part of KubeVirt in one. It needs qemu-storage-daemon,
// qemu-img and root.
type Standin struct {
	Options
	client dynamic.Interface

	mu sync.Mutex
	// machines are the VMs that run, or have run, by UID.
	machines map[types.UID]*machine
	style    Style
	faults   []Fault
	// assigned are the faults of VirtualMachineBackups, by UID, and results how their jobs ended.
	assigned map[types.UID]Fault
	results  map[types.UID]error
	stop     func()
}

// Fault is what goes wrong with one VirtualMachineBackup. The zero value is no fault.
type Fault struct {
	// Hang lets it never begin, and never says why.
	Hang bool
	// FalseSuccess calls it complete, with a checkpoint that is not its own and no files.
	FalseSuccess bool
	// BytesPerSecond slows it down.
	BytesPerSecond int64
	// Damage is called with the directory of its files before it succeeds.
	Damage func(directory string) error
}

// New makes a stand-in for a cluster. CRDs must be there.
func New(config *rest.Config, o Options) (*Standin, error) {
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("create client: %w", err)
	}
	return &Standin{
		Options: o, client: client, style: Style18,
		machines: map[types.UID]*machine{}, assigned: map[types.UID]Fault{}, results: map[types.UID]error{},
	}, nil
}

// Start runs the controller in the background, until Stop.
func (s *Standin) Start() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	s.stop = func() { cancel(); <-done }
	go func() {
		defer close(done)
		last := ""
		for ctx.Err() == nil {
			if err := s.reconcile(ctx); err != nil && ctx.Err() == nil && err.Error() != last {
				last = err.Error()
				s.Log("stand-in: %v", err)
			}
			select {
			case <-ctx.Done():
			case <-time.After(period):
			}
		}
	}()
}

// Stop stops the controller. VMs go on, and what their disks are doing.
func (s *Standin) Stop() { s.stop() }

// Close stops the controller and all VMs.
func (s *Standin) Close() error {
	s.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	errs := make([]error, 0, len(s.machines))
	for _, m := range s.machines {
		errs = append(errs, m.quit())
	}
	return errors.Join(errs...)
}

// SetStyle sets the style of the conditions from now on.
func (s *Standin) SetStyle(style Style) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.style = style
}

// Inject gives the next VirtualMachineBackups one fault each.
func (s *Standin) Inject(faults ...Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, faults...)
}

// Machine returns the process of a VM that runs, and the address of its disks: the NBD export of
// a disk has the name of the disk in the VM.
func (s *Standin) Machine(namespace, vm string) (process int, nbd string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, err := s.find(namespace, vm)
	if err != nil {
		return 0, "", err
	}
	return m.process.Process.Pid, m.path("nbd"), nil
}

// ForgetCheckpoints deletes all bitmaps of a VM that runs.
func (s *Standin) ForgetCheckpoints(namespace, vm string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, err := s.find(namespace, vm)
	if err != nil {
		return err
	}
	return m.removeBitmaps(func(bitmap) bool { return true })
}

func (s *Standin) find(namespace, vm string) (*machine, error) {
	for _, m := range s.machines {
		if m.namespace == namespace && m.name == vm && m.isRunning() {
			return m, nil
		}
	}
	return nil, fmt.Errorf("VM %s/%s does not run", namespace, vm)
}

// reconcile looks at everything once.
func (s *Standin) reconcile(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, kind := range []struct {
		resource schema.GroupVersionResource
		step     func(context.Context, *unstructured.Unstructured) error
	}{{vms, s.reconcileVM}, {vmis, s.reconcileVMI}, {trackers, s.reconcileTracker}, {backups, s.reconcileBackup}} {
		list, err := s.client.Resource(kind.resource).List(ctx, metav1.ListOptions{})
		if err != nil {
			return fmt.Errorf("list %s: %w", kind.resource.Resource, err)
		}
		for i := range list.Items {
			o := &list.Items[i]
			if err := kind.step(ctx, o); err != nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
				errs = append(errs, fmt.Errorf("%s %s/%s: %w", o.GetKind(), o.GetNamespace(), o.GetName(), err))
			}
		}
	}
	return errors.Join(errs...)
}

// setStatus writes a status if it is another one.
func (s *Standin) setStatus(ctx context.Context, resource schema.GroupVersionResource, o *unstructured.Unstructured, status map[string]any) error {
	old, _ := o.Object["status"].(map[string]any)
	if old != nil && equalStatus(old, status) {
		return nil
	}
	o = o.DeepCopy()
	o.Object["status"] = status
	_, err := s.client.Resource(resource).Namespace(o.GetNamespace()).UpdateStatus(ctx, o, metav1.UpdateOptions{})
	return err
}

// setFinalizer adds or removes ours. It returns false if it had to change the object.
func (s *Standin) setFinalizer(ctx context.Context, resource schema.GroupVersionResource, o *unstructured.Unstructured, want bool) (bool, error) {
	if has := len(o.GetFinalizers()) > 0; has == want {
		return true, nil
	}
	o = o.DeepCopy()
	o.SetFinalizers(nil)
	if want {
		o.SetFinalizers([]string{finalizer})
	}
	_, err := s.client.Resource(resource).Namespace(o.GetNamespace()).Update(ctx, o, metav1.UpdateOptions{})
	return false, err
}

// get returns nil if there is no such object.
func (s *Standin) get(ctx context.Context, resource schema.GroupVersionResource, namespace, name string) (*unstructured.Unstructured, error) {
	o, err := s.client.Resource(resource).Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	return o, err
}

// ensurePod creates a pod that holds PVCs, and returns its UID once it runs.
func (s *Standin) ensurePod(ctx context.Context, name string, owner *unstructured.Unstructured, labels map[string]any, held []string) (types.UID, error) {
	pod, err := s.get(ctx, pods, owner.GetNamespace(), name)
	if err != nil {
		return "", err
	}
	if pod != nil {
		if phase, _, _ := unstructured.NestedString(pod.Object, "status", "phase"); phase != "Running" || pod.GetDeletionTimestamp() != nil {
			return "", nil
		}
		return pod.GetUID(), nil
	}
	container := map[string]any{"name": "compute", "image": s.Image, "imagePullPolicy": "IfNotPresent", "command": []any{"sleep", "1000000"}}
	var volumes, mounts, devices []any
	for i, claim := range held {
		pvc, err := s.get(ctx, claims, owner.GetNamespace(), claim)
		if err != nil {
			return "", err
		}
		if pvc == nil {
			return "", fmt.Errorf("PVC %s/%s doesnt exist", owner.GetNamespace(), claim)
		}
		volume := fmt.Sprintf("volume-%d", i)
		volumes = append(volumes, map[string]any{"name": volume, "persistentVolumeClaim": map[string]any{"claimName": claim}})
		if isBlock(pvc) {
			devices = append(devices, map[string]any{"name": volume, "devicePath": "/dev/" + volume})
		} else {
			mounts = append(mounts, map[string]any{"name": volume, "mountPath": "/" + volume})
		}
	}
	container["volumeMounts"], container["volumeDevices"] = mounts, devices
	pod = &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Pod",
		"metadata": map[string]any{
			"name": name, "namespace": owner.GetNamespace(), "labels": labels,
			"ownerReferences": []any{map[string]any{"apiVersion": owner.GetAPIVersion(), "kind": owner.GetKind(), "name": owner.GetName(), "uid": string(owner.GetUID()), "controller": true}},
		},
		"spec": map[string]any{"terminationGracePeriodSeconds": int64(0), "containers": []any{container}, "volumes": volumes},
	}}
	_, err = s.client.Resource(pods).Namespace(owner.GetNamespace()).Create(ctx, pod, metav1.CreateOptions{})
	return "", err
}

// removePod reports whether a pod is gone.
func (s *Standin) removePod(ctx context.Context, namespace, name string) (bool, error) {
	err := s.client.Resource(pods).Namespace(namespace).Delete(ctx, name, metav1.DeleteOptions{})
	if apierrors.IsNotFound(err) {
		return true, nil
	}
	return false, err
}

func isBlock(pvc *unstructured.Unstructured) bool {
	mode, _, _ := unstructured.NestedString(pvc.Object, "spec", "volumeMode")
	return mode == "Block"
}

// hostPath is where the node has a volume of a pod: a device, or a directory.
func (s *Standin) hostPath(ctx context.Context, namespace, claim string, pod types.UID) (path string, block bool, err error) {
	pvc, err := s.get(ctx, claims, namespace, claim)
	if err != nil || pvc == nil {
		return "", false, fmt.Errorf("get PVC %s/%s: %w", namespace, claim, err)
	}
	volume, _, _ := unstructured.NestedString(pvc.Object, "spec", "volumeName")
	return HostPath(s.Kubelet, string(pod), volume, isBlock(pvc)), isBlock(pvc), nil
}

// HostPath is where a node has a CSI volume of a pod: a device, or a directory.
func HostPath(kubelet, pod, volume string, block bool) string {
	if block {
		return filepath.Join(kubelet, "plugins", "kubernetes.io", "csi", "volumeDevices", "publish", volume, pod)
	}
	return filepath.Join(kubelet, "pods", pod, "volumes", "kubernetes.io~csi", volume, "mount")
}
