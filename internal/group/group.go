// Package group plans group snapshots: which volumes are snapshotted at one
// instant, by which class, and why the others are not.
//
// A group is what has one label value in one namespace on one CSI driver. Volumes
// of one label value on two drivers are two groups, each of one instant: no
// storage can do better. Nothing here asks the cluster; the caller gathers what
// there is, and the same input gives the same plan.
//
// The package is pure.
package group

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Volume is a PVC with the label of the group, whether or not it is to be a member.
type Volume struct {
	PVC string
	// Driver is the CSI driver, "" where the volume has none.
	Driver string
	// Bound is set for a PVC that has its volume.
	Bound bool
	// Excluded is set for a PVC that the backup leaves out.
	Excluded bool
	// Ours is set when the volume policy gives the volume to Blockmover.
	Ours bool
}

// LeftOut is a volume that is no member.
type LeftOut struct {
	PVC string
	Why string
}

// Plan returns the PVCs that are snapshotted together with self, in order of their
// names and with self among them, and those that are not.
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

// stranger says why a volume is no member of a group of the driver.
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
	// Default is set when the class has Velero's label.
	Default bool
}

// Wish is a class that somebody asks for by name.
type Wish struct {
	// Source says where it is written.
	Source string
	Class  string
}

// ErrNoClass is returned where the driver has no class at all: it does not take
// group snapshots, as far as the cluster knows.
var ErrNoClass = errors.New("the driver has no VolumeGroupSnapshotClass")

// ChooseClass chooses the class for a group of the driver: what is wished for, the
// first level that has wishes, which must agree; else the driver's default, else its
// only class. It returns ErrNoClass only where nothing is wished for.
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
