package vmbackup

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/chain"
	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/kube"
	"github.com/blockmover/blockmover/internal/kubevirt"
	"github.com/blockmover/blockmover/internal/phase"
)

// Maker makes backups of VMs. All fields but mu are required.
type Maker struct {
	Client client.Client
	// Reader reads from the API server.
	Reader client.Reader
	// Namespace is Velero's.
	Namespace string
	Now       func() time.Time
	// mu lets one backup begin at a time, so that two of one VM see each other.
	mu sync.Mutex
}

// Request is the backup of one VM.
type Request struct {
	// Name is identity.VMBackupName, and Operation the DataUpload that the objects are marked with.
	Name      string
	Operation identity.Operation
	// Namespace, VM and UID are those of the VirtualMachine.
	Namespace, VM, UID string
	// Location is the BackupStorageLocation of the images.
	Location    string
	SkipQuiesce bool
	Disks       []Disk
	// StorageClass is that of the volume for the files; "" is that of the first disk.
	StorageClass string
	// Timeout is for how long KubeVirt may take to begin.
	Timeout time.Duration
}

// key is that of an object in the namespace of the VM.
func (r Request) key(name string) client.ObjectKey {
	return client.ObjectKey{Namespace: r.Namespace, Name: name}
}

// attempt is the key of the objects of an attempt.
func (r Request) attempt(number int) client.ObjectKey {
	return r.key(identity.VMAttemptName(r.Name, number))
}

// Progress is what a step came to.
type Progress struct {
	// Waiting is what the backup waits for. It is "" once the files are ready, and after a step
	// that has changed State and nothing else.
	Waiting string
	// Busy is set while no clock shall run: another backup of the VM runs, or QEMU writes.
	Busy bool
}

const (
	// maxAttempts is how often KubeVirt is asked.
	maxAttempts = 3
	// scratchGrowth is by how much the volume grows after an attempt that it was too small for.
	scratchGrowth = 2
)

// Step takes the next step and records it in the state. An error that wraps phase.ErrBroken ends
// the backup.
func (m *Maker) Step(ctx context.Context, r Request, s *State) (Progress, error) {
	switch {
	case s.Ready:
		return Progress{}, nil
	case s.Files != nil:
		return m.rehome(ctx, r, s)
	}
	vm, err := m.find(ctx, kubevirt.VirtualMachine, r.key(r.VM))
	switch {
	case apierrors.IsForbidden(err):
		return Progress{}, fmt.Errorf("%w: %w: install the component deploy/kubevirt", phase.ErrBroken, err)
	case err != nil:
		return Progress{}, err
	case vm == nil || string(vm.GetUID()) != r.UID:
		return Progress{}, fmt.Errorf("%w: VM %s/%s was deleted since Velero backed it up", phase.ErrBroken, r.Namespace, r.VM)
	case !s.Decided:
		return m.decide(ctx, r, s, vm)
	}
	vmb, err := m.find(ctx, kubevirt.Backup, r.attempt(s.Attempt))
	switch {
	case err != nil:
		return Progress{}, err
	case vmb == nil && s.Begun:
		return again(s, "somebody deleted its VirtualMachineBackup", false)
	case vmb == nil:
		return m.begin(ctx, r, s, vm)
	}
	s.Begun = true
	return m.watch(ctx, r, s, vm, vmb)
}

// find returns nil if there is no such object.
func (m *Maker) find(ctx context.Context, kind schema.GroupVersionKind, key client.ObjectKey) (*unstructured.Unstructured, error) {
	return kube.Find(ctx, m.Reader, key, kubevirt.New(kind))
}

// decide finds out what the attempt asks for.
func (m *Maker) decide(ctx context.Context, r Request, s *State, vm *unstructured.Unstructured) (Progress, error) {
	for attempt := 1; attempt <= s.Attempt; attempt++ {
		left, err := m.releaseAttempt(ctx, r.attempt(attempt))
		if err != nil || left != "" {
			return Progress{Waiting: left}, err
		}
	}
	if ready, _, detail := kubevirt.Ready(vm); !ready {
		return Progress{Waiting: detail}, nil
	}
	if other, err := m.runningBackup(ctx, r, ""); err != nil || other != "" {
		return Progress{Waiting: other, Busy: true}, err
	}
	tracker, err := m.ensureTracker(ctx, r, vm)
	if err != nil {
		return Progress{}, err
	}
	if kubevirt.IsRedefining(tracker) {
		return Progress{Waiting: fmt.Sprintf("KubeVirt tells QEMU of VM %s/%s of its checkpoints", r.Namespace, r.VM)}, nil
	}
	checkpoint := kubevirt.CheckpointOf(tracker)
	if s.Restored, err = m.restoresOf(ctx, r); err != nil {
		return Progress{}, err
	}
	s.Attempt++
	s.Decided, s.Begun, s.Since = true, false, ""
	if s.Full = s.Forced; len(s.Full) == 0 {
		s.Full = whyFull(r.Disks, trackedDisks(vm), checkpoint, s.Restored, m.Now())
	}
	if len(s.Full) == 0 {
		s.Since = checkpoint.Name
	}
	return Progress{}, nil
}

// trackedDisks are the names of all disks of a VM that KubeVirt backs up.
func trackedDisks(vm *unstructured.Unstructured) []string {
	disks := kubevirt.Disks(vm)
	names := make([]string, len(disks))
	for i, d := range disks {
		names[i] = d.Volume
	}
	return names
}

// runningBackup names a VirtualMachineBackup of the VM that has not ended, other than own.
func (m *Maker) runningBackup(ctx context.Context, r Request, own string) (string, error) {
	trackers := map[string]bool{}
	list := kubevirt.NewList(kubevirt.Tracker)
	if err := m.Reader.List(ctx, list, client.InNamespace(r.Namespace)); err != nil {
		return "", fmt.Errorf("list %ss: %w", kubevirt.Tracker.Kind, err)
	}
	for i := range list.Items {
		if _, vm := kubevirt.SourceOf(&list.Items[i]); vm == r.VM {
			trackers[list.Items[i].GetName()] = true
		}
	}
	list = kubevirt.NewList(kubevirt.Backup)
	if err := m.Reader.List(ctx, list, client.InNamespace(r.Namespace)); err != nil {
		return "", fmt.Errorf("list %ss: %w", kubevirt.Backup.Kind, err)
	}
	for i := range list.Items {
		vmb := &list.Items[i]
		kind, source := kubevirt.SourceOf(vmb)
		ofVM := kind == kubevirt.VirtualMachine.Kind && source == r.VM || kind == kubevirt.Tracker.Kind && trackers[source]
		if ofVM && vmb.GetName() != own && !kubevirt.IsOver(vmb) {
			return fmt.Sprintf("VirtualMachineBackup %s/%s of the same VM runs", vmb.GetNamespace(), vmb.GetName()), nil
		}
	}
	return "", nil
}

// ensureTracker returns the tracker of the VM, which goes with the VM.
func (m *Maker) ensureTracker(ctx context.Context, r Request, vm *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	name := identity.VMTrackerName(r.UID, r.Location)
	found, err := m.find(ctx, kubevirt.Tracker, r.key(name))
	if err != nil || found != nil {
		return found, err
	}
	tracker := kubevirt.NewTracker(r.VM)
	tracker.SetNamespace(r.Namespace)
	tracker.SetName(name)
	tracker.SetLabels(map[string]string{velerov1.ExcludeFromBackupLabel: "true"})
	tracker.SetOwnerReferences([]metav1.OwnerReference{{
		APIVersion: kubevirt.VirtualMachine.GroupVersion().String(), Kind: kubevirt.VirtualMachine.Kind, Name: vm.GetName(), UID: vm.GetUID(),
	}})
	return tracker, kube.Ensure(ctx, m.Client, tracker)
}

// begin creates the PVC and the VirtualMachineBackup of the attempt.
func (m *Maker) begin(ctx context.Context, r Request, s *State, vm *unstructured.Unstructured) (Progress, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	name := identity.VMAttemptName(r.Name, s.Attempt)
	if other, err := m.runningBackup(ctx, r, name); err != nil || other != "" {
		s.Decided, s.Attempt = false, s.Attempt-1 // the checkpoint will be another one
		return Progress{Waiting: other, Busy: true}, err
	}
	claim, err := m.planScratch(ctx, r, s, vm)
	if err != nil {
		return Progress{}, err
	}
	if err := kube.Ensure(ctx, m.Client, claim); err != nil {
		return Progress{}, err
	}
	vmb := kubevirt.NewBackup(kubevirt.BackupSpec{
		Tracker: identity.VMTrackerName(r.UID, r.Location), Claim: name, ForceFull: s.Since == "", SkipQuiesce: r.SkipQuiesce,
	})
	vmb.SetNamespace(r.Namespace)
	vmb.SetName(name)
	vmb.SetLabels(labels(r.Name))
	vmb.SetAnnotations(r.Operation.Annotations())
	if err := kube.Ensure(ctx, m.Client, vmb); err != nil {
		return Progress{}, err
	}
	s.Begun = true
	return Progress{Waiting: fmt.Sprintf("VirtualMachineBackup %s/%s was created", r.Namespace, name)}, nil
}

// labels are those of the objects of a VM backup.
func labels(name string) map[string]string {
	return map[string]string{identity.LabelVMBackup: name, velerov1.ExcludeFromBackupLabel: "true"}
}

// watch follows the VirtualMachineBackup of the attempt.
func (m *Maker) watch(ctx context.Context, r Request, s *State, vm, vmb *unstructured.Unstructured) (Progress, error) {
	state := kubevirt.StateOf(vmb)
	name := fmt.Sprintf("VirtualMachineBackup %s/%s", r.Namespace, vmb.GetName())
	switch state.Stage {
	case kubevirt.Running:
		if moved, err := m.checkpointMoved(ctx, r, s, vmb); err != nil || moved != "" {
			return againUnless(err, s, moved)
		}
		return Progress{Waiting: fmt.Sprintf("%s: QEMU writes the disks", name), Busy: true}, nil
	case kubevirt.Succeeded:
		return m.succeeded(ctx, r, s, vmb, state)
	case kubevirt.Failed:
		if state.NoSpace {
			s.NoSpace++
		}
		// If it failed for a reason of its own, what changed may be what it cannot give.
		return again(s, fmt.Sprintf("%s: %s", name, state.Detail), !state.NoSpace && vmb.GetDeletionTimestamp() == nil)
	default:
		why := m.whyNot(ctx, r, vmb, state.Detail)
		if m.Now().Sub(vmb.GetCreationTimestamp().Time) < r.Timeout {
			return Progress{Waiting: name + " has not begun" + why, Busy: true}, nil
		}
		noSpace := kubevirt.IsNoSpace(why) // not even for a directory
		if noSpace {
			s.NoSpace++
		}
		if ready, _, detail := kubevirt.Ready(vm); !ready {
			why = ": " + detail
		}
		return again(s, fmt.Sprintf("%s has not begun within %s%s", name, r.Timeout, why), !noSpace)
	}
}

// whyNot is what KubeVirt says of a backup that does not begin. It writes that into the status, into
// an event of the VirtualMachineInstance, or only into the log of its controller. An event from before
// the backup is about another one.
func (m *Maker) whyNot(ctx context.Context, r Request, vmb *unstructured.Unstructured, detail string) string {
	text := ""
	if detail != "" {
		text = ": " + detail
	}
	events := &corev1.EventList{}
	if err := m.Reader.List(ctx, events, client.InNamespace(r.Namespace), client.MatchingFields{"involvedObject.name": r.VM}); err != nil {
		return text // it is only an explanation
	}
	slices.SortFunc(events.Items, func(a, b corev1.Event) int { return b.LastTimestamp.Compare(a.LastTimestamp.Time) })
	for _, e := range events.Items {
		if e.Reason == "BackupError" && !e.LastTimestamp.Time.Before(vmb.GetCreationTimestamp().Time) {
			return text + ": " + e.Message
		}
	}
	return text
}

func againUnless(err error, s *State, why string) (Progress, error) {
	if err != nil {
		return Progress{}, err
	}
	return again(s, why, true)
}

// succeeded records the files.
func (m *Maker) succeeded(ctx context.Context, r Request, s *State, vmb *unstructured.Unstructured, state kubevirt.State) (Progress, error) {
	for _, d := range r.Disks {
		if !slices.Contains(state.Volumes, d.Volume) {
			return Progress{}, fmt.Errorf("%w: KubeVirt does not back up disk %s of VM %s/%s: it backs up %s",
				phase.ErrBroken, d.Volume, r.Namespace, r.VM, strings.Join(state.Volumes, ", "))
		}
	}
	switch {
	case state.Type == kubevirt.Full && s.Since != "":
		s.Full = []chain.Step{{Reason: chain.CheckpointLost, Detail: "KubeVirt made a full backup, and was asked what changed since checkpoint " + s.Since}}
		s.Since = ""
	case state.Type == kubevirt.Incremental && s.Since == "":
		return again(s, fmt.Sprintf("KubeVirt wrote what changed, and was asked for a full backup: VirtualMachineBackup %s", vmb.GetName()), true)
	}
	if moved, err := m.checkpointMoved(ctx, r, s, vmb); err != nil || moved != "" {
		return againUnless(err, s, moved)
	}
	claim, err := kube.Find(ctx, m.Reader, client.ObjectKeyFromObject(vmb), &corev1.PersistentVolumeClaim{})
	switch {
	case err != nil:
		return Progress{}, err
	case claim == nil || claim.Spec.VolumeName == "":
		return again(s, fmt.Sprintf("somebody deleted PVC %s/%s, which has the files", r.Namespace, vmb.GetName()), false)
	}
	s.Files = &Files{Backup: vmb.GetName(), Checkpoint: state.Checkpoint, At: vmb.GetCreationTimestamp().Time, Volume: claim.Spec.VolumeName}
	return Progress{}, nil
}

// again lets another attempt follow, or gives up. full makes it a full one.
func again(s *State, why string, full bool) (Progress, error) {
	if s.Attempt >= maxAttempts {
		return Progress{}, fmt.Errorf("%w: %s; this was attempt %d", phase.ErrBroken, why, s.Attempt)
	}
	if full && s.Since != "" {
		s.Forced = []chain.Step{{Reason: chain.IncrementalStuck, Detail: why}}
	}
	s.Decided, s.Begun = false, false
	return Progress{Waiting: why + "; another attempt follows"}, nil
}

// notServed reports whether the cluster does not know a kind.
func notServed(err error) bool { return meta.IsNoMatchError(err) || apierrors.IsNotFound(err) }
