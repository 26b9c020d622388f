// Package vmbackup has KubeVirt write the disks of a running VM into files, all at one instant, and
// hands the volume with the files to mover pods in Velero's namespace.
//
// One backup of a VM serves all DataUploads of its disks. It has a name (identity.VMBackupName).
// Its objects have names that are derived from it, and a label with it:
//
//	namespace of the VM   tracker              one per VM and storage location; it is kept
//	                      PVC                  one per attempt; QEMU writes into it
//	                      VirtualMachineBackup one per attempt
//	Velero's namespace    PVC                  the files, after they have changed hands
//
// # Steps
//
// Step takes the next one. Whoever calls it saves State in between, so each step can be repeated:
//
//	decide   no other backup of the VM runs; full or what changed since a checkpoint
//	begin    create PVC and VirtualMachineBackup
//	watch    until it has succeeded; if not, another attempt
//	rehome   PV set to Retain, VirtualMachineBackup and PVC deleted, PV given to the PVC in
//	         Velero's namespace, PV set to Delete
//
// # Checkpoints
//
// The files hold what changed since the tracker's checkpoint. That is of use only if the newest
// image of every disk was made at this very checkpoint. The checkpoint is read before the attempt
// and again while it runs, when nobody else can move it: KubeVirt refuses a second
// VirtualMachineBackup of one tracker. In all other cases the files hold the whole disks, and a
// reason says why.
package vmbackup
