// Package inplace decides whether a restore may write into the volume of a live PVC.
//
// An in-place restore overwrites what may be the only copy of somebody's data, so it starts
// only if nothing speaks against it. The plugin asks for a quick answer; the manager asks
// again before it exposes the volume; the worker compares the volume with the image before it
// writes.
//
// A volume is the one that an image is of if driver and handle are the same, or if KubeVirt has backed up the disk of the same PVC. A PVC that was
// deleted and created again, also by an earlier restore, has another volume. To write one
// volume over another takes AnyVolume, so that nobody does it by mistake.
//
// The package is pure.
package inplace

import (
	"errors"
	"fmt"
	"strings"

	"github.com/blockmover/blockmover/internal/identity"
)

// Mode is what the annotation of a Restore asks for.
type Mode string

// The modes are the values of the annotation.
const (
	// Off leaves PVCs that exist alone.
	Off Mode = "false"
	// SameVolume writes only to the volume that the image is of.
	SameVolume Mode = "true"
	// AnyVolume writes to whatever volume the PVC has.
	AnyVolume Mode = "any-volume"
)

// ParseMode reads the annotation; "" is Off.
func ParseMode(value string) (Mode, error) {
	switch mode := Mode(value); mode {
	case "":
		return Off, nil
	case Off, SameVolume, AnyVolume:
		return mode, nil
	}
	return Off, fmt.Errorf("annotation %s of the Restore is %q, want %s, %s or %s", identity.AnnotationInPlace, value, SameVolume, AnyVolume, Off)
}

// Volume is what the cluster says about a PVC and its volume.
type Volume struct {
	// Claim is namespace/name of the PVC.
	Claim string
	UID   string
	// Deleting is set if the PVC or its PersistentVolume is being deleted.
	Deleting bool
	// Name is that of the PersistentVolume, or "" if the PVC names none.
	Name string
	// Bound is set if the PVC and the PersistentVolume are bound to each other.
	Bound bool
	// Driver and Handle are CSI's. Both are "" if the volume is not of CSI.
	Driver, Handle string
	// Capacity of the PersistentVolume in bytes.
	Capacity int64
	// Operation is the operation that has the PersistentVolume in its charge, or "".
	Operation string
	// Pods are the names of the pods that use the PVC and have not ended.
	Pods []string
	// Nodes are those that the volume is attached to.
	Nodes []string
}

// Wanted is what an in-place restore needs.
type Wanted struct {
	Mode Mode
	// UID is that of the PVC that was looked at first, or "".
	UID string
	// Size of the image in bytes; 0 if it is not known.
	Size int64
	// Handle is that of the volume that the image is of; "" if it is not known.
	Handle string
}

// ErrInUse is wrapped by the error that names the pods which use the volume. They may stop.
var ErrInUse = errors.New("the volume is in use")

// Check returns why the volume must not be written, or nil.
func Check(v Volume, w Wanted) error {
	switch {
	case w.UID != "" && v.UID != w.UID:
		return fmt.Errorf("PVC %s was deleted and created again since the restore began: restore again", v.Claim)
	case v.Deleting:
		return fmt.Errorf("PVC %s or its volume is being deleted", v.Claim)
	case !v.Bound:
		return fmt.Errorf("PVC %s is not bound to a volume: start a pod that uses it once, or delete the PVC and restore it as a new one", v.Claim)
	case v.Driver == "" || v.Handle == "":
		return fmt.Errorf("PersistentVolume %s of PVC %s is not a CSI volume, and no other can be written in place", v.Name, v.Claim)
	case v.Operation != "":
		return fmt.Errorf("PersistentVolume %s of PVC %s still belongs to %s: wait until that has ended", v.Name, v.Claim, v.Operation)
	case v.Capacity < w.Size:
		return fmt.Errorf("the volume of PVC %s has %d bytes and the image %d: expand the PVC first", v.Claim, v.Capacity, w.Size)
	}
	if err := CheckHandle(w.Mode, v, w.Handle); err != nil {
		return err
	}
	if len(v.Pods) > 0 {
		return fmt.Errorf("%w: pod %s uses PVC %s: scale the application down, wait until its pods are gone, and restore again", ErrInUse, strings.Join(v.Pods, ", "), v.Claim)
	}
	return nil
}

// CheckHandle returns an error if the image is of another volume than the live one, and the
// mode does not allow that. An image whose handle is not known fits. Of the live volume, Claim, UID and Handle count.
func CheckHandle(mode Mode, live Volume, image string) error {
	// KubeVirt knows no handles. The image of a disk that it has backed up names the VM and the UID of the PVC.
	sameClaim := live.UID != "" && strings.HasSuffix(image, "/"+live.UID)
	if mode == AnyVolume || image == "" || live.Handle == image || sameClaim {
		return nil
	}
	return fmt.Errorf("PVC %s has volume %q, and the image is of volume %q: to overwrite another volume than the one that was backed up, set the annotation %s of the Restore to %s",
		live.Claim, live.Handle, image, identity.AnnotationInPlace, AnyVolume)
}
