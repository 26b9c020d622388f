package kit

import (
	"context"
	"fmt"
	"time"
)

// Fsck runs `e2fsck -fn` on the volume of a Filesystem PVC that no pod has mounted yet. It
// presents a snapshot of the volume as a Block PVC. So it works on any cluster with CSI
// snapshots, and does not change the volume.
func (k *Kit) Fsck(ctx context.Context, namespace, pvc, class, snapshotClass string) (err error) {
	name := "fsck-" + pvc
	snapshot := fmt.Sprintf(`apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {name: %s, namespace: %s}
spec:
  volumeSnapshotClassName: %s
  source: {persistentVolumeClaimName: %s}
`, name, namespace, snapshotClass, pvc)
	if err := k.Apply(ctx, snapshot); err != nil {
		return err
	}
	defer func() {
		for _, kind := range []string{"pod", "pvc", "volumesnapshot"} {
			_, deleteErr := k.Kubectl(ctx, "-n", namespace, "delete", kind, name, "--ignore-not-found", "--timeout=60s")
			if err == nil {
				err = deleteErr
			}
		}
	}()
	content, err := k.boundContent(ctx, namespace, name)
	if err != nil {
		return err
	}
	// This consent allows a Block volume from a Filesystem snapshot.
	if _, err := k.Kubectl(ctx, "annotate", "volumesnapshotcontent", content, "snapshot.storage.kubernetes.io/allow-volume-mode-change=true"); err != nil {
		return err
	}
	manifest := PVC(namespace, name, class, "Block", filesSize) + fmt.Sprintf(`
  dataSource: {apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: %[2]s}
---
apiVersion: v1
kind: Pod
metadata: {name: %[2]s, namespace: %[1]s}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers:
  - name: fsck
    image: %[3]s
    imagePullPolicy: IfNotPresent
    command: [e2fsck, -fn, /dev/volume]
    volumeDevices: [{name: volume, devicePath: /dev/volume}]
  volumes: [{name: volume, persistentVolumeClaim: {claimName: %[2]s}}]
`, namespace, name, k.ToolsImage)
	if err := k.Apply(ctx, manifest); err != nil {
		return err
	}
	var pod Object
	if err := k.Wait(ctx, "e2fsck of "+namespace+"/"+pvc, time.Minute, func(ctx context.Context) (bool, string, error) {
		err := k.Get(ctx, &pod, "-n", namespace, "pod", name)
		return pod.Status.Phase == "Succeeded" || pod.Status.Phase == "Failed", pod.Status.Phase, err
	}); err != nil {
		return err
	}
	out, err := k.Kubectl(ctx, "-n", namespace, "logs", name)
	if err != nil {
		return err
	}
	k.Log("e2fsck -fn %s/%s: %s: %s", namespace, pvc, pod.Status.Phase, tail(out))
	if pod.Status.Phase != "Succeeded" {
		return fmt.Errorf("e2fsck of %s/%s: %s", namespace, pvc, tail(out))
	}
	return nil
}

// boundContent waits for the VolumeSnapshotContent of a VolumeSnapshot.
func (k *Kit) boundContent(ctx context.Context, namespace, name string) (string, error) {
	var content string
	err := k.Wait(ctx, "content of VolumeSnapshot "+namespace+"/"+name, time.Minute, func(ctx context.Context) (bool, string, error) {
		var err error
		content, err = k.Kubectl(ctx, "-n", namespace, "get", "volumesnapshot", name, "-o", "jsonpath={.status.boundVolumeSnapshotContentName}")
		return content != "", "not bound", err
	})
	return content, err
}
