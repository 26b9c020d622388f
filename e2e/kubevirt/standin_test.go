package kubevirt

import (
	"bufio"
	"context"
	"crypto/md5"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/blockmover/blockmover/e2e/kit"
	"github.com/blockmover/blockmover/e2e/kubevirt/standin"
)

// standinWorld is what stands in for KubeVirt, in this process.
type standinWorld struct{ *standin.Standin }

func (w *standinWorld) install(ctx context.Context, k *kit.Kit) (func() error, error) {
	var err error
	if w.Standin, err = standin.Install(ctx, k); err != nil {
		return nil, err
	}
	return w.Remove, nil
}

func (w *standinWorld) guest(_ *kit.Kit, namespace string) guest {
	return &standinGuest{world: w, namespace: namespace}
}

func (w *standinWorld) restart(context.Context, *kit.Kit) error {
	w.Stop()
	w.Start()
	return nil
}

func (*standinWorld) rounds() int { return 1 }

// standinGuest writes to the disks over NBD.
type standinGuest struct {
	world     *standinWorld
	namespace string
	stop      func() error
}

func (g *standinGuest) nbd(_ context.Context, claim string) (string, error) {
	return g.world.Address(g.namespace, "vm1", volumeOf(claim))
}

// volumeOf is the name in the VM of the disk of a PVC.
func volumeOf(claim string) string {
	return disks[slices.IndexFunc(disks, func(d disk) bool { return d.claim == claim })].volume
}

func (g *standinGuest) process() (int, error) {
	process, _, err := g.world.Machine(g.namespace, "vm1")
	return process, err
}

func (g *standinGuest) forget(context.Context) error {
	return g.world.ForgetCheckpoints(g.namespace, "vm1")
}

func (g *standinGuest) fill(ctx context.Context, claim string, kib, blocks, first int) error {
	return g.world.Fill(ctx, g.namespace, "vm1", volumeOf(claim), int64(kib*first)<<10, int64(kib*blocks)<<10)
}

func (g *standinGuest) sum(ctx context.Context, claim string) (string, error) {
	return g.world.Sum(ctx, g.namespace, "vm1", volumeOf(claim), md5.New())
}

// count has one qemu-io for each disk.
func (g *standinGuest) count(ctx context.Context) error {
	file := filepath.Join(g.world.Directory, "number")
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var writers []*writer
	for _, d := range disks {
		address, err := g.nbd(ctx, d.claim)
		if err != nil {
			cancel()
			return err
		}
		w, err := newWriter(ctx, address)
		if err != nil {
			cancel()
			return err
		}
		writers = append(writers, w)
	}
	ended := make(chan error, 1)
	stop := make(chan struct{})
	go func() {
		ended <- func() error {
			for i := 1; ; i++ {
				select {
				case <-stop:
					return nil
				default:
				}
				if err := os.WriteFile(file, fmt.Appendf(nil, "%016d", i), 0o600); err != nil {
					return err
				}
				for _, w := range writers {
					if err := w.write(file); err != nil {
						return err
					}
				}
			}
		}()
	}()
	g.stop = func() error {
		close(stop)
		err := <-ended
		cancel()
		for _, w := range writers {
			_ = w.cmd.Wait() // it is killed
		}
		return err
	}
	return nil
}

func (g *standinGuest) stopCounting(context.Context) error { return g.stop() }

// writer is a qemu-io that writes when it is told to.
type writer struct {
	cmd *exec.Cmd
	in  io.Writer
	out *bufio.Reader
}

func newWriter(ctx context.Context, address string) (*writer, error) {
	cmd := exec.CommandContext(ctx, "qemu-io", "-f", "raw", address)
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	return &writer{cmd, in, bufio.NewReader(out)}, cmd.Start()
}

func (w *writer) write(file string) error {
	if _, err := fmt.Fprintf(w.in, "write -f -s %s 1048576 16\n", file); err != nil {
		return err
	}
	for {
		line, err := w.out.ReadString('\n')
		if err != nil {
			return fmt.Errorf("read answer of qemu-io: %w", err)
		}
		if strings.Contains(line, "wrote 16/16") {
			return nil
		}
		if strings.Contains(line, "failed") {
			return errors.New(line)
		}
	}
}
