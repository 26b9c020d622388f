package vmbackup

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/blockmover/blockmover/internal/chain"
	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/kubevirt"
)

// Disk is a disk whose file is wanted.
type Disk struct {
	kubevirt.Disk
	// Image is the newest image of the disk, or the zero value.
	Image Image
	// FullEvery is the age at which a full image is due; 0 is never.
	FullEvery time.Duration
	// Forced is set if a full image was asked for.
	Forced bool
}

// Image is a complete image of a disk in the repository.
type Image struct {
	// Checkpoint is the instant that it shows. It is "" if there is no image.
	Checkpoint string
	// Restored is what State.Restored said of the disk when the image was made.
	Restored string
	// Full is when the newest full image was made.
	Full time.Time
}

// whyFull returns the reasons why all of the disks is needed. If there is none, what changed since
// the checkpoint will do. present are the names of all disks that the VM has now, and restored is State.Restored.
func whyFull(disks []Disk, present []string, checkpoint kubevirt.Checkpoint, restored map[string]string, now time.Time) []chain.Step {
	var reasons []chain.Step
	add := func(reason chain.Reason, format string, args ...any) {
		reasons = append(reasons, chain.Step{Reason: reason, Detail: fmt.Sprintf(format, args...)})
	}
	if i := slices.IndexFunc(disks, func(d Disk) bool { return d.Forced }); i >= 0 {
		add(chain.ForcedFull, "a full image of disk %s was asked for", disks[i].Volume)
		return reasons
	}
	if checkpoint.Name == "" {
		add(chain.NoParent, "the VM has no checkpoint: this is its first backup, or QEMU was killed since the last one")
		return reasons
	}
	if present = slices.Sorted(slices.Values(present)); !slices.Equal(present, checkpoint.Volumes) {
		add(chain.DisksChanged, "the VM has the disks %s, and checkpoint %s has %s",
			strings.Join(present, ", "), checkpoint.Name, strings.Join(checkpoint.Volumes, ", "))
	}
	for _, d := range disks {
		switch {
		case d.Image.Checkpoint == "":
			add(chain.NoParent, "there is no image of disk %s", d.Volume)
		case d.Image.Checkpoint != checkpoint.Name:
			add(chain.CheckpointUnknown, "the newest image of disk %s shows checkpoint %s, and KubeVirt knows what changed since %s",
				d.Volume, d.Image.Checkpoint, checkpoint.Name)
		case d.Image.Restored != restored[d.Volume]:
			add(chain.DiskRestored, "a restore has written disk %s in place since its newest image, and QEMU has not seen that: label %s of its PVC is %q, and was %q",
				d.Volume, identity.LabelRestored, restored[d.Volume], d.Image.Restored)
		case d.FullEvery > 0 && now.Sub(d.Image.Full) >= d.FullEvery:
			add(chain.FullDue, "the newest full image of disk %s is %s old, one is due every %s", d.Volume, now.Sub(d.Image.Full).Round(time.Second), d.FullEvery)
		}
	}
	return reasons
}
