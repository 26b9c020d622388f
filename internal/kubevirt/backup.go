package kubevirt

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// Stage is how far a VirtualMachineBackup is.
type Stage int

// The stages.
const (
	// Waiting: QEMU has not begun. It may never begin.
	Waiting Stage = iota
	// Running: QEMU writes.
	Running
	// Succeeded: all files are there, and their volume is not in use any more.
	Succeeded
	// Failed: there are no files.
	Failed
)

// Types of a backup.
const (
	Full        = "Full"
	Incremental = "Incremental"
)

// State is what a VirtualMachineBackup says of itself.
type State struct {
	Stage Stage
	// Detail is for people, in the words of KubeVirt.
	Detail string
	// NoSpace is set if it failed because its volume is too small.
	NoSpace bool
	// Checkpoint is the name of the instant. Type is Full or Incremental. Volumes are the names
	// of the disks in the VM. They are only known of a backup that Succeeded.
	Checkpoint, Type string
	Volumes          []string
}

// What KubeVirt 1.8 writes as the reason of Done.
const doneReason = "Successfully completed VirtualMachineBackup"

// IsNoSpace reports whether a text of KubeVirt says that the volume for the files is too small. QEMU and
// Go spell it differently.
func IsNoSpace(text string) bool {
	return strings.Contains(strings.ToLower(text), "no space left on device")
}

// condition is a condition of either version. Text is what it says to people.
type condition struct{ status, reason, text string }

// StateOf returns the state of a VirtualMachineBackup.
func StateOf(vmb *unstructured.Unstructured) State {
	conditions := conditionsOf(vmb)
	done, complete, failed := conditions["Done"], conditions["Complete"], conditions["Failed"]
	progressing, initializing := conditions["Progressing"], conditions["Initializing"]
	kind, _, _ := unstructured.NestedString(vmb.Object, "status", "type")
	switch {
	case failed.status == "True":
		return ended(failed.text)
	case done.status == "True" && done.reason != doneReason:
		return ended(done.text)
	case vmb.GetDeletionTimestamp() != nil:
		return State{Stage: Failed, Detail: "it is being deleted"}
	case done.status == "True" || complete.status == "True":
		return evidence(vmb, kind)
	case progressing.status == "True" && kind != "":
		return State{Stage: Running, Detail: progressing.text}
	case progressing.status == "True":
		return State{Detail: progressing.text}
	}
	return State{Detail: initializing.text}
}

func ended(text string) State {
	return State{Stage: Failed, Detail: text, NoSpace: IsNoSpace(text)}
}

// evidence checks that a success is one.
func evidence(vmb *unstructured.Unstructured, kind string) State {
	checkpoint, _, _ := unstructured.NestedString(vmb.Object, "status", "checkpointName")
	s := State{Stage: Succeeded, Checkpoint: checkpoint, Type: kind, Volumes: volumesOf(vmb.Object, "status", "includedVolumes")}
	wrong := ""
	switch {
	case !strings.HasPrefix(checkpoint, vmb.GetName()+"-"):
		wrong = fmt.Sprintf("its checkpoint is %q, which is not its own", checkpoint)
	case kind != Full && kind != Incremental:
		wrong = fmt.Sprintf("its type is %q, want %s or %s", kind, Full, Incremental)
	case len(s.Volumes) == 0:
		wrong = "it has no volumes"
	}
	if wrong != "" {
		return State{Stage: Failed, Detail: "KubeVirt calls it complete, and " + wrong}
	}
	return s
}

func conditionsOf(vmb *unstructured.Unstructured) map[string]condition {
	list, _, _ := unstructured.NestedSlice(vmb.Object, "status", "conditions")
	conditions := make(map[string]condition, len(list))
	for _, item := range list {
		fields, _ := item.(map[string]any)
		name, _, _ := unstructured.NestedString(fields, "type")
		var c condition
		c.status, _, _ = unstructured.NestedString(fields, "status")
		c.reason, _, _ = unstructured.NestedString(fields, "reason")
		c.text, _, _ = unstructured.NestedString(fields, "message")
		if c.text == "" {
			c.text = c.reason // 1.8 has sentences there
		}
		conditions[name] = c
	}
	return conditions
}

// volumesOf reads the names of a list of volumes, in order.
func volumesOf(object map[string]any, fields ...string) []string {
	list, _, _ := unstructured.NestedSlice(object, fields...)
	var names []string
	for _, item := range list {
		volume, _ := item.(map[string]any)
		if name, _, _ := unstructured.NestedString(volume, "volumeName"); name != "" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// IsOver reports whether a VirtualMachineBackup has ended and holds its VM no longer.
func IsOver(vmb *unstructured.Unstructured) bool {
	conditions := conditionsOf(vmb)
	return conditions["Done"].status == "True" || conditions["Complete"].status == "True" || conditions["Failed"].status == "True"
}

// Checkpoint is the instant of the last backup that a tracker knows.
type Checkpoint struct {
	// Name is "" if there is none.
	Name string
	// Volumes are the names of the disks that it has, in order.
	Volumes []string
}

// CheckpointOf returns the latest checkpoint of a tracker.
func CheckpointOf(tracker *unstructured.Unstructured) Checkpoint {
	name, _, _ := unstructured.NestedString(tracker.Object, "status", "latestCheckpoint", "name")
	return Checkpoint{Name: name, Volumes: volumesOf(tracker.Object, "status", "latestCheckpoint", "volumes")}
}

// IsRedefining reports whether KubeVirt is about to tell QEMU of the checkpoints again, which it
// does after a restart of the VM.
func IsRedefining(tracker *unstructured.Unstructured) bool {
	required, _, _ := unstructured.NestedBool(tracker.Object, "status", "checkpointRedefinitionRequired")
	return required
}

// SourceOf returns kind and name of what a VirtualMachineBackup or a tracker is made of.
func SourceOf(object *unstructured.Unstructured) (kind, name string) {
	kind, _, _ = unstructured.NestedString(object.Object, "spec", "source", "kind")
	name, _, _ = unstructured.NestedString(object.Object, "spec", "source", "name")
	return kind, name
}

// NewTracker returns the spec of a tracker of a VM.
func NewTracker(vm string) *unstructured.Unstructured {
	u := New(Tracker)
	u.Object["spec"] = map[string]any{"source": source(VirtualMachine.Group, VirtualMachine.Kind, vm)}
	return u
}

// BackupSpec is what a VirtualMachineBackup asks for.
type BackupSpec struct {
	Tracker, Claim         string
	ForceFull, SkipQuiesce bool
}

// NewBackup returns the spec of a VirtualMachineBackup that QEMU writes into a PVC.
func NewBackup(b BackupSpec) *unstructured.Unstructured {
	u := New(Backup)
	u.Object["spec"] = map[string]any{
		"source":          source(Tracker.Group, Tracker.Kind, b.Tracker),
		"mode":            "Push",
		"pvcName":         b.Claim,
		"forceFullBackup": b.ForceFull,
		"skipQuiesce":     b.SkipQuiesce,
	}
	return u
}

func source(group, kind, name string) map[string]any {
	return map[string]any{"apiGroup": group, "kind": kind, "name": name}
}
