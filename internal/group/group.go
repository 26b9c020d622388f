// Package group plans group snapshots: which volumes are snapshotted at one instant, by which
// class, and why the others are not.
//
// A group has the volumes with one label value in one namespace on one CSI driver. Volumes
// with the same label value on two drivers are two groups, each with an instant of its own,
// because no storage can snapshot both at once. The same input gives the same plan.
//
// The package is pure: the caller collects the input.
package group

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Volume is a PVC with the label of the group. It may be a member or not.
type Volume struct {
	PVC string
	// Driver is the CSI driver, or "" if the volume has none.
	Driver string
	// Bound is set if the PVC is bound.
	Bound bool
	// Excluded is set if the backup leaves the PVC out.
	Excluded bool
	// Ours is set if the volume policy gives the volume to Blockmover.
	Ours bool
}

// LeftOut is a volume that is no member.
type LeftOut struct {
	PVC string
	Why string
}

// Plan returns the PVCs that are snapshotted together with self, ordered by name and
// including self, and the others.
func Plan(self Volume, volumes []Volume) (members []string, leftOut []LeftOut) {
	members = []string{self.PVC}
	for _, v := range volumes {
		if v.PVC == self.PVC {
			continue
		}
		if why := v.stranger(self.Driver); why != "" {
			leftOut = append(leftOut, LeftOut{PVC: v.PVC, Why: why})
			continue
		}
		members = append(members, v.PVC)
	}
	slices.Sort(members)
	slices.SortFunc(leftOut, func(a, b LeftOut) int { return strings.Compare(a.PVC, b.PVC) })
	return members, leftOut
}

// stranger says why a volume is not a member of a group of the driver.
func (v Volume) stranger(driver string) string {
	switch {
	case v.Excluded:
		return "the backup excludes it"
	case !v.Bound:
		return "it is not bound"
	case !v.Ours:
		return "its volume policy does not give it to blockmover"
	case v.Driver == "":
		return "it is no CSI volume"
	case v.Driver != driver:
		return "it is of driver " + v.Driver
	}
	return ""
}

// Class is a VolumeGroupSnapshotClass.
type Class struct {
	Name   string
	Driver string
	// Default is set if the class has Velero's label.
	Default bool
}

// Wish is a class that is asked for by name.
type Wish struct {
	// Source says where it is written.
	Source string
	Class  string
}

// ErrNoClass is returned if the driver has no class: as far as the cluster knows, it takes no
// group snapshots.
var ErrNoClass = errors.New("the driver has no VolumeGroupSnapshotClass")

// ChooseClass chooses the class for a group of the driver. The first level that has wishes
// decides; its wishes must agree. Without wishes, it is the driver's default, or its only
// class. ChooseClass returns ErrNoClass only if there are no wishes.
func ChooseClass(driver string, levels [][]Wish, classes []Class) (string, error) {
	for _, wishes := range levels {
		if len(wishes) > 0 {
			return wishedFor(driver, wishes, classes)
		}
	}
	var all, defaults []string
	for _, c := range classes {
		if c.Driver != driver {
			continue
		}
		all = append(all, c.Name)
		if c.Default {
			defaults = append(defaults, c.Name)
		}
	}
	slices.Sort(all)
	slices.Sort(defaults)
	switch {
	case len(all) == 0:
		return "", ErrNoClass
	case len(defaults) == 1:
		return defaults[0], nil
	case len(defaults) > 1:
		return "", fmt.Errorf("choose VolumeGroupSnapshotClass of driver %s: %d are labelled as default, want one: %s",
			driver, len(defaults), strings.Join(defaults, ", "))
	case len(all) > 1:
		return "", fmt.Errorf("choose VolumeGroupSnapshotClass of driver %s: there are %d and none is labelled as default: %s",
			driver, len(all), strings.Join(all, ", "))
	}
	return all[0], nil
}

func wishedFor(driver string, wishes []Wish, classes []Class) (string, error) {
	first := wishes[0]
	if slices.ContainsFunc(wishes, func(w Wish) bool { return w.Class != first.Class }) {
		texts := make([]string, len(wishes))
		for i, w := range wishes {
			texts[i] = w.Class + " (" + w.Source + ")"
		}
		return "", fmt.Errorf("choose VolumeGroupSnapshotClass of driver %s: one group cannot have several: %s",
			driver, strings.Join(texts, ", "))
	}
	at := slices.IndexFunc(classes, func(c Class) bool { return c.Name == first.Class })
	switch {
	case at < 0:
		return "", fmt.Errorf("choose VolumeGroupSnapshotClass of driver %s: %s of %s does not exist", driver, first.Class, first.Source)
	case classes[at].Driver != driver:
		return "", fmt.Errorf("choose VolumeGroupSnapshotClass of driver %s: %s of %s is of driver %s",
			driver, first.Class, first.Source, classes[at].Driver)
	}
	return first.Class, nil
}
