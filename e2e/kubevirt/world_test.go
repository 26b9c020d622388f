package kubevirt

import (
	"context"
	"os"
	"testing"

	"github.com/blockmover/blockmover/e2e/kit"
)

// world is KubeVirt: the real one, or what stands in for it.
type world interface {
	// install installs it, and returns what removes what is left on the host.
	install(ctx context.Context, k *kit.Kit) (func() error, error)
	// guest is that of the VM in a namespace.
	guest(k *kit.Kit, namespace string) guest
	// restart restarts its controller.
	restart(ctx context.Context, k *kit.Kit) error
	// rounds is how often a VM is backed up while its guest writes.
	rounds() int
}

// guest is what happens in a VM, and to its QEMU.
type guest interface {
	// fill writes blocks of random data of so many KiB to the disk of a PVC.
	fill(ctx context.Context, claim string, kib, blocks, first int) error
	// sum is the MD5 sum of the disk of a PVC.
	sum(ctx context.Context, claim string) (string, error)
	// count writes an ascending number to one disk after the other, 16 digits at 1 MiB. Each write is
	// on the disk before the next one begins.
	count(ctx context.Context) error
	stopCounting(ctx context.Context) error
	// nbd exports the disk of a PVC, and returns its address.
	nbd(ctx context.Context, claim string) (string, error)
	// process is that of QEMU.
	process() (int, error)
	// forget deletes the checkpoints that QEMU has.
	forget(ctx context.Context) error
}

// theWorld is real if BLOCKMOVER_KUBEVIRT names a directory that build.sh has filled.
var theWorld = pickWorld()

func pickWorld() world {
	if directory := os.Getenv("BLOCKMOVER_KUBEVIRT"); directory != "" {
		return realWorld{directory}
	}
	return &standinWorld{}
}

// theStandin skips a test if KubeVirt is real.
func theStandin(t *testing.T) *standinWorld {
	t.Helper()
	w, ok := theWorld.(*standinWorld)
	if !ok {
		t.Skip("real KubeVirt does not do this on demand")
	}
	return w
}
