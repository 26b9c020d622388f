package standin

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
)

// begin starts the block jobs of all disks, in one transaction.
func (b *backup) begin(ctx context.Context, pod types.UID) error {
	if b.since != "" {
		lacking, err := b.machine.lacks(b.since)
		if err != nil {
			return err
		}
		if lacking != "" { // KubeVirt waits for ever
			return b.event(ctx, fmt.Sprintf("checkpoint inconsistent: missing or broken bitmap %s of disk %s", b.since, lacking))
		}
	}
	target, _, err := b.s.hostPath(ctx, b.GetNamespace(), b.claim(), pod)
	if err != nil {
		return err
	}
	directory := filepath.Join(target, b.machine.name, b.instant())
	if err := os.MkdirAll(directory, 0o700); err != nil {
		return err
	}
	var actions []any
	for _, v := range b.machine.volumes {
		made, err := b.prepare(v, filepath.Join(directory, b.file(v)))
		if err != nil {
			return err
		}
		actions = append(actions, made...)
	}
	if err := b.machine.command("transaction", map[string]any{"actions": actions}, nil); err != nil {
		return err
	}
	b.s.Log("stand-in: VirtualMachineBackup %s/%s has begun: %s", b.GetNamespace(), b.GetName(), b.kind())
	status := b.s.style.running(b.kind(), "Backup is in progress")
	status["checkpointName"], status["includedVolumes"] = b.instant(), b.included()
	status["instance"], status["pod"] = string(b.machine.instance), string(pod)
	return b.set(ctx, status)
}

// prepare makes the file of a disk, and returns the actions that begin to fill it.
func (b *backup) prepare(v volume, file string) ([]any, error) {
	size, _, err := sizeOf(v.path)
	if err != nil {
		return nil, err
	}
	args := []string{"create", "-q", "-f", "qcow2"}
	if b.since != "" { // the name is of the VM's pod, and means nothing outside
		args = append(args, "-u", "-F", "qcow2", "-b", "/var/run/kubevirt-private/libvirt/qemu/cbt/"+v.name+".qcow2")
	}
	if err := run("qemu-img", append(args, file, fmt.Sprint(size))...); err != nil {
		return nil, err
	}
	node := b.node(v)
	if err := b.machine.command("blockdev-add", map[string]any{
		"driver": "qcow2", "node-name": node, "backing": nil, "discard": "unmap", "detect-zeroes": "unmap",
		"file": map[string]any{"driver": "file", "filename": file, "node-name": "f" + node},
	}, nil); err != nil {
		return nil, err
	}
	job := map[string]any{"job-id": node, "device": v.name, "target": node, "sync": "full", "auto-dismiss": false}
	if b.fault.BytesPerSecond > 0 {
		job["speed"] = b.fault.BytesPerSecond
	}
	action := func(kind string, data map[string]any) any { return map[string]any{"type": kind, "data": data} }
	actions := []any{action("block-dirty-bitmap-add", map[string]any{"node": v.name, "name": b.instant(), "persistent": true})}
	if b.since != "" {
		job["sync"], job["bitmap"], job["bitmap-mode"] = "bitmap", node, "never"
		actions = append(actions,
			action("block-dirty-bitmap-add", map[string]any{"node": v.name, "name": node, "disabled": true}),
			action("block-dirty-bitmap-merge", map[string]any{"node": v.name, "target": node, "bitmaps": []string{b.since}}))
	}
	return append(actions, action("blockdev-backup", job)), nil
}

// watch waits for the block jobs. The last condition is written when nothing holds the volume.
func (b *backup) watch(ctx context.Context) error {
	result, ended := b.s.results[b.GetUID()]
	if !ended {
		var err error
		if ended, result, err = b.jobs(); err != nil || !ended {
			return err
		}
		if err := b.clean(); err != nil {
			return err
		}
		if err := b.files(ctx, result); err != nil {
			return err
		}
		b.s.results[b.GetUID()] = result
	}
	if result != nil {
		return b.end(ctx, b.s.style.failed("Failed", result.Error()))
	}
	return b.end(ctx, b.s.style.succeeded())
}

// jobs reports whether all jobs have ended, and the first failure.
func (b *backup) jobs() (ended bool, failure error, err error) {
	var list []struct{ ID, Status, Error string }
	if err := b.machine.command("query-jobs", nil, &list); err != nil {
		return false, nil, err
	}
	for _, v := range b.machine.volumes {
		for _, job := range list {
			switch {
			case job.ID != b.node(v):
			case job.Status != "concluded":
				return false, nil, nil
			case job.Error != "":
				failure = errors.Join(failure, errors.New(job.Error))
			}
		}
	}
	return true, failure, nil
}

// clean dismisses the jobs and closes the files.
func (b *backup) clean() error {
	for _, v := range b.machine.volumes {
		node := b.node(v)
		if err := b.machine.command("job-dismiss", map[string]any{"id": node}, nil); err != nil {
			return err
		}
		if err := b.machine.command("blockdev-del", map[string]any{"node-name": node}, nil); err != nil {
			return err
		}
		if b.since == "" {
			continue
		}
		if err := b.machine.command("block-dirty-bitmap-remove", map[string]any{"node": v.name, "name": node}, nil); err != nil {
			return err
		}
	}
	return nil
}

// files gives the files to their user, or removes them.
func (b *backup) files(ctx context.Context, failure error) error {
	pod, _, _ := unstructured.NestedString(b.Object, "status", "pod")
	target, _, err := b.s.hostPath(ctx, b.GetNamespace(), b.claim(), types.UID(pod))
	if err != nil {
		return err
	}
	directory := filepath.Join(target, b.machine.name, b.instant())
	for _, v := range b.machine.volumes {
		file := filepath.Join(directory, b.file(v))
		if failure != nil {
			err = errors.Join(err, os.Remove(file))
			continue
		}
		err = errors.Join(err, os.Chmod(file, 0o600), os.Chown(file, userID, userID))
	}
	for _, path := range []string{target, filepath.Dir(directory), directory} {
		err = errors.Join(err, os.Chown(path, userID, userID))
	}
	if failure == nil && b.fault.Damage != nil {
		err = errors.Join(err, b.fault.Damage(directory))
	}
	return err
}
