package chaos

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/blockmover/blockmover/e2e/kit"
)

// application is a namespace with volumes and a pod that writes to them without pause.
type application struct {
	namespace string
	volumes   []volume
	// vm is set if it is a VM. sums are then those of its disks in this round.
	vm   bool
	sums map[string]string
}

type volume struct {
	name, class string
	block       bool
	// group is set if all volumes with it have one snapshot.
	group bool
	mib   int64
}

// applications are those of every run: both drivers, both modes, a group, a VM.
func applications(k *kit.Kit) []*application {
	return []*application{
		{namespace: "chaos-a", volumes: []volume{
			{name: "vol-disk", class: k.StorageClass, block: true, mib: 64},
			{name: "files", class: k.StorageClass, mib: 64},
		}},
		{namespace: "chaos-b", volumes: []volume{
			{name: "vol-g1", class: k.StorageClass, block: true, group: true, mib: 32},
			{name: "vol-g2", class: k.StorageClass, block: true, group: true, mib: 32},
		}},
		{namespace: "chaos-c", volumes: []volume{
			{name: "vol-disk", class: k.OtherStorageClass, block: true, mib: 48},
			{name: "vol-late", class: k.WaitStorageClass, block: true, mib: 16},
		}},
		{namespace: "chaos-vm", vm: true, volumes: []volume{
			{name: "root", class: k.StorageClass, block: true, mib: 48},
			{name: "data", class: k.OtherStorageClass, block: true, mib: 32},
		}},
	}
}

// The scripts are in a directory of the node that all pods have. What writes does so only in a
// namespace that has a file there, so a restored application keeps its content.
var scripts = map[string]string{
	// It writes to one place after the other, and stops while /ctl/pause is there.
	"writer.sh": `
while true; do
  if [ -e /ctl/pause ] || [ ! -e "/chaos/writes/$NAMESPACE" ]; then
    touch /ctl/paused; sleep 0.2; continue
  fi
  rm -f /ctl/paused
  for d in /dev/vol-*; do
    [ -b "$d" ] || continue
    blocks=$(( $(blockdev --getsize64 "$d") / 65536 ))
    dd if=/dev/urandom of="$d" bs=65536 count=1 seek=$(( (RANDOM * 32768 + RANDOM) % blocks )) conv=notrunc,fsync 2>/dev/null
  done
  for f in /mnt/*; do
    [ -d "$f" ] || continue
    dd if=/dev/urandom of="$f/file-$((RANDOM % 60))" bs=65536 count=$((RANDOM % 8 + 1)) conv=fsync 2>/dev/null
    [ $((RANDOM % 5)) = 0 ] && rm -f "$f/file-$((RANDOM % 60))"
  done
  sleep 0.3
done
`,
	"fill.sh": `
for d in /dev/vol-*; do
  [ -b "$d" ] && dd if=/dev/urandom of="$d" bs=1048576 count=$(( $(blockdev --getsize64 "$d") * 6 / 10485760 )) conv=notrunc,fsync 2>/dev/null
done
for f in /mnt/*; do
  [ -d "$f" ] && dd if=/dev/urandom of="$f/large" bs=1048576 count=30 conv=fsync 2>/dev/null
done
sync
`,
	"sums.sh": `
for d in /dev/vol-*; do
  if [ -b "$d" ]; then echo "${d#/dev/} $(sha256sum <"$d" | cut -d' ' -f1)"; fi
done
for f in /mnt/*; do
  if [ -d "$f" ]; then cd "$f"; echo "${f#/mnt/} $(find . -type f | LC_ALL=C sort | xargs -r sha256sum | sha256sum | cut -d' ' -f1)"; fi
done
`,
	// The hook of a backup, before its snapshots: nothing writes from then on, and the ledger has
	// the sums of what the snapshots have to show.
	"pre.sh": `
touch /ctl/pause
i=0
while [ ! -e /ctl/paused ]; do sleep 0.1; i=$((i+1)); [ $i -lt 300 ]; done
sync
sh -e /chaos/sums.sh >"/chaos/ledger/$1.new"
mv "/chaos/ledger/$1.new" "/chaos/ledger/$1"
`,
	"post.sh": "rm -f /ctl/pause\n",
}

func (w *world) dir(elem ...string) string {
	return filepath.Join(append([]string{w.state, "chaos"}, elem...)...)
}

func (w *world) writeScripts() error {
	for _, dir := range []string{"writes", "ledger"} {
		if err := os.MkdirAll(w.dir(dir), 0o755); err != nil {
			return fmt.Errorf("make directory of the ledger: %w", err)
		}
	}
	for name, text := range scripts {
		if err := os.WriteFile(w.dir(name), []byte(text), 0o600); err != nil {
			return fmt.Errorf("write script: %w", err)
		}
	}
	return nil
}

// install makes an application and fills it.
func (a *application) install(ctx context.Context, w *world) error {
	if a.vm {
		return a.installVM(ctx, w)
	}
	manifest := fmt.Sprintf("apiVersion: v1\nkind: Namespace\nmetadata: {name: %s}\n", a.namespace)
	var mounts, devices []string
	volumes := make([]string, 0, len(a.volumes))
	for _, v := range a.volumes {
		mode := "Filesystem"
		var labels []string
		if v.block {
			mode = "Block"
			devices = append(devices, fmt.Sprintf("{name: %[1]s, devicePath: /dev/%[1]s}", v.name))
		} else {
			mounts = append(mounts, fmt.Sprintf("{name: %[1]s, mountPath: /mnt/%[1]s}", v.name))
		}
		if v.group {
			labels = append(labels, "velero.io/volume-group: "+a.namespace)
		}
		volumes = append(volumes, fmt.Sprintf("{name: %[1]s, persistentVolumeClaim: {claimName: %[1]s}}", v.name))
		manifest += "---\n" + kit.PVC(a.namespace, v.name, v.class, mode, v.mib<<20, labels...) + "\n"
	}
	manifest += fmt.Sprintf(`---
apiVersion: apps/v1
kind: Deployment
metadata: {name: app, namespace: %s}
spec:
  strategy: {type: Recreate}
  selector: {matchLabels: {app: app}}
  template:
    metadata: {labels: {app: app}}
    spec:
      terminationGracePeriodSeconds: 1 # with 0, the pod is gone before its volumes are unmounted
      containers:
      - name: app
        image: %s
        imagePullPolicy: IfNotPresent
        command: [sh, /chaos/writer.sh]
        env: [{name: NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}]
        volumeMounts: [%s]
        volumeDevices: [%s]
      volumes: [%s]
`, a.namespace, w.kit.ToolsImage,
		strings.Join(append(mounts, "{name: ctl, mountPath: /ctl}", "{name: chaos, mountPath: /chaos}"), ", "),
		strings.Join(devices, ", "),
		strings.Join(append(volumes, "{name: ctl, emptyDir: {}}", fmt.Sprintf("{name: chaos, hostPath: {path: %s}}", w.dir())), ", "))
	if err := w.kit.Apply(ctx, manifest); err != nil {
		return err
	}
	app, err := w.kit.AppIn(ctx, a.namespace)
	if err != nil {
		return err
	}
	_, err = app.Exec(ctx, "sh /chaos/fill.sh")
	return err
}

// writes lets the application write, or not. A VM writes for a moment, before anything happens.
func (w *world) writes(ctx context.Context, a *application, on bool, seed uint64) error {
	switch {
	case a.vm && on:
		return w.writeVM(ctx, a, seed)
	case a.vm:
		return nil
	}
	file := w.dir("writes", a.namespace)
	if on {
		return os.WriteFile(file, nil, 0o600)
	}
	if err := os.Remove(file); err != nil && !os.IsNotExist(err) {
		return err
	}
	return nil
}

// sums reads what an application has in a namespace, by volume.
func (w *world) sums(ctx context.Context, a *application, namespace string) (map[string]string, error) {
	if a.vm {
		return w.vmSums(ctx, a, namespace)
	}
	app, err := w.kit.AppIn(ctx, namespace)
	if err != nil {
		return nil, err
	}
	out, err := app.Exec(ctx, "sh -e /chaos/sums.sh")
	return parseSums(out), err
}

// ledger has what the hook of a backup saw, or what a VM had in its round. It is nil if no hook has come to its end.
func (w *world) ledger(b *backup) (map[string]string, error) {
	if b.app.vm {
		return b.sums, nil
	}
	text, err := os.ReadFile(w.dir("ledger", b.name))
	if os.IsNotExist(err) {
		return nil, nil
	}
	return parseSums(string(text)), err
}

func parseSums(text string) map[string]string {
	sums := map[string]string{}
	for line := range strings.Lines(text) {
		name, sum, _ := strings.Cut(strings.TrimSpace(line), " ")
		sums[name] = sum
	}
	return sums
}
