package kubevirt

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/e2e/kubevirt/standin"
)

// TestFaults has KubeVirt's backups fail as KubeVirt was seen to fail, in the style of either version.
// Each backup is complete, says what it is and why, and the last one is what the guest saw.
func TestFaults(t *testing.T) {
	w := theStandin(t)
	for _, style := range []standin.Style{standin.Style18, standin.Style19} {
		t.Run("KubeVirt "+string(style), func(t *testing.T) {
			w.SetStyle(style)
			t.Cleanup(func() { w.SetStyle(standin.Style18) })
			s := newScenario(t)
			g := s.start()
			n := 0
			next := func(kind, detail string, faults ...standin.Fault) string {
				t.Helper()
				n++
				w.Inject(faults...)
				s.fill(g, 64, 1, n)
				name := fmt.Sprintf("fault-%d-%s", n, s.suffix)
				for claim, result := range s.backUp(name, g.namespace, "--csi-snapshot-timeout", "20s") {
					require.Equal(t, kind, result["kind"]+" "+result["reason"], claim)
					require.Contains(t, result["detail"], detail, claim)
				}
				return name
			}
			next("Full NoParent", "the VM has no checkpoint")
			next("Incremental ", "")
			next("Full IncrementalStuck", "has not begun within 20s", standin.Fault{Hang: true})
			next("Full IncrementalStuck", "which is not its own", standin.Fault{FalseSuccess: true})
			next("Incremental ", "", standin.Fault{BytesPerSecond: 32 << 10})
			require.NoError(t, g.forget(s.ctx))
			detail := "has not begun within 20s"
			if style == standin.Style19 {
				detail = "checkpoint inconsistent"
			}
			next("Full IncrementalStuck", detail)

			s.testNoSpace(g, func() string { return next("Incremental ", "", standin.Fault{}, standin.Fault{}) })
		})
	}
}

// TestLostWhileItRuns kills QEMU, and another time deletes the VM, while QEMU writes the disks.
func TestLostWhileItRuns(t *testing.T) {
	w := theStandin(t)
	s := newScenario(t)
	g := s.start()
	slow := standin.Fault{BytesPerSecond: 1 << 20}
	s.backUp("lost-first-"+s.suffix, g.namespace)
	s.fill(g, 1024, 60, 0)

	w.Inject(slow)
	killed := make(chan struct{})
	go func() {
		defer close(killed)
		if s.waitForQEMU(g) {
			pid, err := g.process()
			assert.NoError(t, errors.Join(err, syscall.Kill(pid, syscall.SIGKILL)))
		}
	}()
	name := "lost-qemu-" + s.suffix
	for claim, result := range s.backUp(name, g.namespace) {
		require.Equal(t, "Full IncrementalStuck", result["kind"]+" "+result["reason"], "%s: %s", claim, result["detail"])
		require.Contains(t, result["detail"], "backup status was lost", claim)
	}
	<-killed
	s.requireEqual(s.restoreDisks(name, g.namespace, "lost"), g)

	w.Inject(slow)
	deleted := make(chan struct{})
	go func() {
		defer close(deleted)
		if s.waitForQEMU(g) {
			_, err := s.kit.Kubectl(s.ctx, "-n", g.namespace, "delete", "vm", "vm1", "--timeout=60s")
			assert.NoError(t, err)
		}
	}()
	s.requireFailure("lost-vm-"+s.suffix, g.namespace, "was deleted since Velero backed it up")
	<-deleted
}

// requireFailure makes a backup that fails for each disk with a message, and leaves nothing.
func (s *scenario) requireFailure(name, namespace, message string, args ...string) {
	s.Helper()
	s.deleteBackupInTheEnd(name)
	o, err := s.kit.Backup(s.ctx, name, append([]string{"--include-namespaces", namespace, "--resource-policies-configmap", s.policy()}, args...)...)
	require.NoError(s, err)
	require.Equal(s, "PartiallyFailed", o.Status.Phase)
	uploads, err := s.kit.DataUploads(s.ctx, name)
	require.NoError(s, err)
	require.Len(s, uploads, len(disks))
	for claim, u := range uploads {
		require.Equal(s, "Failed", u.Status.Phase, claim)
		require.Contains(s, u.Status.Message, message, claim)
	}
	require.NoError(s, s.kit.WaitNoLeftovers(s.ctx))
}

// TestDamagedFiles has KubeVirt call a backup complete whose files are not what they should be. No
// backup is made of them, and the next one does not build on them.
func TestDamagedFiles(t *testing.T) {
	w := theStandin(t)
	s := newScenario(t)
	g := s.start()
	s.fill(g, 1024, 4, 0)
	s.backUp("sound-"+s.suffix, g.namespace)
	each := func(damage func(file string) error) standin.Fault {
		return standin.Fault{Damage: func(directory string) error {
			files, err := filepath.Glob(filepath.Join(directory, "*.qcow2"))
			for _, file := range files {
				err = errors.Join(err, damage(file))
			}
			return err
		}}
	}
	for _, tc := range []struct {
		name, message string
		fault         standin.Fault
	}{
		{"short", "qcow2", each(func(file string) error { return os.Truncate(file, 200<<10) })},
		{"missing", "qcow2", each(os.Remove)},
		{"link", "qcow2", each(func(file string) error { return errors.Join(os.Remove(file), os.Symlink("/etc/passwd", file)) })},
	} {
		s.fill(g, 1024, 4, 8)
		w.Inject(tc.fault)
		s.requireFailure(tc.name+"-"+s.suffix, g.namespace, tc.message)
	}
	last := "sound-again-" + s.suffix
	for claim, result := range s.backUp(last, g.namespace) {
		require.Equal(t, "CheckpointUnknown", result["reason"], "%s: %s", claim, result["detail"])
	}
	s.requireEqual(s.restoreDisks(last, g.namespace, "sound"), g)
}
