// Package standin stands in for KubeVirt on the test cluster: for the faults that real KubeVirt does
// not make on demand, and where real KubeVirt takes too long. `make kubevirt-e2e` is the judge of
// whether KubeVirt behaves as this package does.
//
// Its VMs have a pod that holds their volumes, and no guest. In place of QEMU runs its storage
// daemon (qemu-storage-daemon), which is the same block layer: bitmaps, block jobs, qcow2 files. What
// the guest writes, a test writes over NBD. As with KubeVirt, each disk is a qcow2 overlay with an
// external data file, for the bitmaps.
//
// The VirtualMachineBackups go through the same conditions, in the styles of 1.8 and of 1.9, and the
// same files appear: owned by user 107, mode 0600, with the name of a backing file that is not
// there. The volume with the files is held by a pod until the last condition is written.
//
// The statuses are those that were recorded of KubeVirt 1.8.2 and 1.9.0.
package standin
