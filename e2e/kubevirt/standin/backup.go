package standin

import (
	"context"
	"errors"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// vmOf returns the VM of a tracker, or of a VirtualMachineBackup by way of its tracker.
func (s *Standin) vmOf(ctx context.Context, o *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	kind, _, _ := unstructured.NestedString(o.Object, "spec", "source", "kind")
	name, _, _ := unstructured.NestedString(o.Object, "spec", "source", "name")
	if kind == "VirtualMachine" {
		return s.get(ctx, vms, o.GetNamespace(), name)
	}
	tracker, err := s.get(ctx, trackers, o.GetNamespace(), name)
	if err != nil || tracker == nil {
		return nil, err
	}
	return s.vmOf(ctx, tracker)
}

// backup is a VirtualMachineBackup as it is worked on.
type backup struct {
	*unstructured.Unstructured
	s       *Standin
	machine *machine
	fault   Fault
	tracker *unstructured.Unstructured
	// since is the checkpoint that an increment begins at, "" if it is a full one.
	since string
}

// attachment is the pod that holds the volume for the files.
func (b *backup) attachment() string { return "hp-volume-" + b.GetName() }

func (b *backup) claim() string {
	name, _, _ := unstructured.NestedString(b.Object, "spec", "pvcName")
	return name
}

func (b *backup) instant() string {
	return b.GetName() + "-" + b.GetCreationTimestamp().UTC().Format("2006-01-02_15-04-05")
}

func (b *backup) kind() string {
	if b.since == "" {
		return "Full"
	}
	return "Incremental"
}

func (b *backup) node(v volume) string { return fmt.Sprintf("to-%.8s-%s", b.GetUID(), v.name) }

func (b *backup) file(v volume) string { return fmt.Sprintf("%s-%s.qcow2", b.GetName(), v.name) }

func (s *Standin) reconcileBackup(ctx context.Context, o *unstructured.Unstructured) error {
	b := &backup{Unstructured: o, s: s}
	vm, err := s.vmOf(ctx, o)
	if err != nil {
		return err
	}
	if vm != nil {
		b.machine = s.machines[vm.GetUID()]
	}
	if kind, _, _ := unstructured.NestedString(o.Object, "spec", "source", "kind"); kind != "VirtualMachine" {
		name, _, _ := unstructured.NestedString(o.Object, "spec", "source", "name")
		if b.tracker, err = s.get(ctx, trackers, o.GetNamespace(), name); err != nil {
			return err
		}
	}
	if b.tracker != nil {
		b.since, _, _ = unstructured.NestedString(b.tracker.Object, "status", "latestCheckpoint", "name")
	}
	forced, _, _ := unstructured.NestedBool(o.Object, "spec", "forceFullBackup")
	if begun, _, _ := unstructured.NestedString(o.Object, "status", "type"); forced || begun == "Full" {
		b.since = ""
	}
	switch {
	case o.GetDeletionTimestamp() != nil:
		return b.delete(ctx)
	case b.isOver():
		return nil
	}
	if ok, err := s.setFinalizer(ctx, backups, o, true); !ok {
		return err
	}
	if _, known := s.assigned[o.GetUID()]; !known && len(s.faults) > 0 {
		s.assigned[o.GetUID()], s.faults = s.faults[0], s.faults[1:]
	}
	b.fault = s.assigned[o.GetUID()]
	return b.step(ctx, vm)
}

func (b *backup) isOver() bool {
	conditions, _, _ := unstructured.NestedSlice(b.Object, "status", "conditions")
	for _, c := range conditions {
		fields, _ := c.(map[string]any)
		switch fields["type"] {
		case "Done", "Complete", "Failed":
			if fields["status"] == "True" {
				return true
			}
		}
	}
	return false
}

// step takes the next step of a backup that has not ended.
func (b *backup) step(ctx context.Context, vm *unstructured.Unstructured) error {
	running := b.has("type")
	switch {
	case running && (!b.machine.isRunning() || !b.mine()):
		return b.end(ctx, b.s.style.failed("SourceLost", "VMI backup status was lost"))
	case running:
		return b.watch(ctx)
	case vm == nil || !b.machine.isRunning():
		return b.set(ctx, b.s.style.refused("vm is not running, cannot do backup"))
	case b.fault.FalseSuccess:
		status := map[string]any{"checkpointName": "another-2026-11-25_02-55-56", "includedVolumes": b.included(), "conditions": b.s.style.succeeded()}
		return b.set(ctx, status)
	}
	if pvc, err := b.s.get(ctx, claims, b.GetNamespace(), b.claim()); err != nil || pvc == nil {
		return errors.Join(err, b.set(ctx, b.s.style.refused(fmt.Sprintf("PVC %s/%s doesnt exist", b.GetNamespace(), b.claim()))))
	}
	if err := b.set(ctx, b.s.style.attaching(fmt.Sprintf("backup target PVC %s is being attached to VMI %s", b.claim(), b.machine.name))); err != nil {
		return err
	}
	if b.fault.Hang {
		return nil
	}
	pod, err := b.s.ensurePod(ctx, b.attachment(), b.Unstructured, nil, []string{b.claim()})
	if err != nil || pod == "" {
		return err
	}
	return b.begin(ctx, pod)
}

func (b *backup) has(field string) bool {
	_, found, _ := unstructured.NestedString(b.Object, "status", field)
	return found
}

// mine reports whether the VM still runs for whom the backup began.
func (b *backup) mine() bool {
	instance, _, _ := unstructured.NestedString(b.Object, "status", "instance")
	return instance == string(b.machine.instance)
}

func (b *backup) set(ctx context.Context, status map[string]any) error {
	return b.s.setStatus(ctx, backups, b.Unstructured, status)
}

func (b *backup) included() []any {
	list := make([]any, 0, len(b.machine.volumes))
	for i, v := range b.machine.volumes {
		list = append(list, map[string]any{"volumeName": v.name, "diskTarget": "vd" + string(rune('a'+i))})
	}
	return list
}

// end writes the last conditions, after the volume has become free.
func (b *backup) end(ctx context.Context, conditions []any) error {
	gone, err := b.s.removePod(ctx, b.GetNamespace(), b.attachment())
	if err != nil || !gone {
		return err
	}
	status, _, _ := unstructured.NestedMap(b.Object, "status")
	if fields, _ := conditions[0].(map[string]any); fields["message"] == success || fields["reason"] == success {
		if err := b.advance(ctx); err != nil {
			return err
		}
	}
	status["conditions"] = conditions
	b.s.Log("stand-in: VirtualMachineBackup %s/%s has ended: %v", b.GetNamespace(), b.GetName(), conditions[len(conditions)-1])
	return b.set(ctx, status)
}

// advance writes the checkpoint into the tracker.
func (b *backup) advance(ctx context.Context) error {
	if b.tracker == nil {
		return nil
	}
	return b.s.setStatus(ctx, trackers, b.tracker, map[string]any{
		"toldTo": string(b.machine.instance),
		"latestCheckpoint": map[string]any{
			"name": b.instant(), "creationTime": b.GetCreationTimestamp().UTC().Format(time.RFC3339), "volumes": b.included(),
		},
	})
}

// delete aborts what runs.
func (b *backup) delete(ctx context.Context) error {
	if b.has("type") && b.machine.isRunning() && b.mine() && !b.isOver() {
		ended, _, err := b.jobs()
		if err != nil {
			return err
		}
		if !ended {
			for _, v := range b.machine.volumes {
				// It fails if the job has just ended.
				_ = b.machine.command("block-job-cancel", map[string]any{"device": b.node(v), "force": true}, nil)
			}
			return nil
		}
		if _, known := b.s.results[b.GetUID()]; !known {
			if err := b.clean(); err != nil {
				return err
			}
			b.s.results[b.GetUID()] = errors.New("backup aborted: Operation canceled")
		}
	}
	gone, err := b.s.removePod(ctx, b.GetNamespace(), b.attachment())
	if err != nil || !gone {
		return err
	}
	_, err = b.s.setFinalizer(ctx, backups, b.Unstructured, false)
	return err
}

// event is what KubeVirt 1.9 says of a backup that cannot begin, once.
func (b *backup) event(ctx context.Context, text string) error {
	if b.s.style == Style18 {
		return nil
	}
	name := "backup-error-" + string(b.GetUID())
	if found, err := b.s.get(ctx, events, b.GetNamespace(), name); err != nil || found != nil {
		return err
	}
	now := time.Now().UTC().Format(time.RFC3339)
	event := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Event", "type": "Warning", "reason": "BackupError", "message": text,
		"metadata":       map[string]any{"name": name, "namespace": b.GetNamespace()},
		"involvedObject": map[string]any{"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "namespace": b.GetNamespace(), "name": b.machine.name},
		"source":         map[string]any{"component": "virt-controller"},
		"firstTimestamp": now, "lastTimestamp": now, "count": int64(1),
	}}
	_, err := b.s.client.Resource(events).Namespace(b.GetNamespace()).Create(ctx, event, metav1.CreateOptions{})
	return err
}
